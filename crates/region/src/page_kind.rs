use std::{fs, io, ptr::NonNull, sync::OnceLock};

/// Which pages a region really got, in this process's mapping of it.
///
/// See [`HugePages`](crate::HugePages) for how to ask for others than small ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PageKind {
    /// Pages of the usual [size](crate::page_size).
    Small,
    /// `huge` bytes of it are mapped as transparent huge pages, the rest as usual.
    Transparent {
        /// Bytes in huge pages.
        huge: usize,
    },
    /// Pages of hugetlb memory.
    Hugetlb {
        /// The size of a page, in bytes.
        page: usize,
    },
}

impl PageKind {
    /// Of the mappings that begin inside the `len` bytes from `base` on. Pages that were not touched through this
    /// mapping are not mapped yet and do not count.
    pub(crate) fn of(base: NonNull<u8>, len: usize) -> io::Result<PageKind> {
        let base = base.as_ptr() as usize;
        Ok(parse(
            &fs::read_to_string("/proc/self/smaps")?,
            base..base.saturating_add(len),
        ))
    }
}

/// What smaps says about the mappings that begin in `range` (proc_pid_smaps(5)).
fn parse(smaps: &str, range: std::ops::Range<usize>) -> PageKind {
    let (mut inside, mut huge, mut page) = (false, 0, 0);
    for line in smaps.lines() {
        // Of a mapping, `7f..-7f.. rw-s 00000000 00:01 7 /memfd:name (deleted)`; of its fields, `Name:  4 kB`.
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        match first.strip_suffix(':') {
            None => {
                let start = first.split('-').next().unwrap_or_default();
                let start = usize::from_str_radix(start, 16);
                inside = start.is_ok_and(|start| range.contains(&start));
            }
            Some("ShmemPmdMapped") if inside => huge += bytes(line),
            Some("KernelPageSize") if inside => page = bytes(line),
            Some(_) => {}
        }
    }
    if page > crate::page_size() {
        PageKind::Hugetlb { page }
    } else if huge > 0 {
        PageKind::Transparent { huge }
    } else {
        PageKind::Small
    }
}

/// `Name:   4 kB` in bytes.
pub(crate) fn bytes(line: &str) -> usize {
    let number = line.split_ascii_whitespace().nth(1);
    number.and_then(|number| number.parse().ok()).unwrap_or(0) * 1024
}

/// The size of a transparent huge page, where this kernel has such: 2 MiB on most machines.
pub(crate) fn huge_page_size() -> Option<usize> {
    static SIZE: OnceLock<Option<usize>> = OnceLock::new();
    *SIZE.get_or_init(|| {
        let size = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").ok()?;
        size.trim()
            .parse()
            .ok()
            .filter(|&size: &usize| size.is_power_of_two())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_and_their_fields() {
        let smaps = "\
7f0000000000-7f0000400000 rw-s 00000000 00:01 7   /memfd:a b (deleted)
Size:               4096 kB
KernelPageSize:        4 kB
ShmemPmdMapped:     2048 kB
VmFlags: rd wr sh
7f0000400000-7f0000600000 rw-s 00000000 00:10 8   /memfd:huge (deleted)
KernelPageSize:     2048 kB
ShmemPmdMapped:        0 kB
7f0000600000-7f0000601000 rw-s 00000000 00:01 9   /memfd:small (deleted)
KernelPageSize:        4 kB
ShmemPmdMapped:        0 kB
";
        let at = |start: usize, len| parse(smaps, start..start + len);
        let huge = 2 << 20;
        assert_eq!(
            at(0x7f00_0000_0000, 4 << 20),
            PageKind::Transparent { huge }
        );
        assert_eq!(at(0x7f00_0040_0000, huge), PageKind::Hugetlb { page: huge });
        assert_eq!(at(0x7f00_0060_0000, 4096), PageKind::Small);
    }
}
