//! Numbers of users and groups that stand for others: in a user namespace, the kernel shows whoever has no number there as
//! the overflow id (user_namespaces(7)).

use std::fs;
use std::io;
use std::sync::OnceLock;

/// Which kind of number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    User,
    Group,
}

impl Kind {
    /// Whether `id` may be that of somebody without a number in this user namespace. True where it cannot be told, for want
    /// of /proc.
    pub(crate) fn is_ambiguous(self, id: u32) -> bool {
        id == self.overflow() && !self.all_have_numbers()
    }

    fn overflow(self) -> u32 {
        static USER: OnceLock<u32> = OnceLock::new();
        static GROUP: OnceLock<u32> = OnceLock::new();
        let (known, file) = match self {
            Kind::User => (&USER, "/proc/sys/kernel/overflowuid"),
            Kind::Group => (&GROUP, "/proc/sys/kernel/overflowgid"),
        };
        *known.get_or_init(|| {
            let read = fs::read_to_string(file).ok();
            read.and_then(|text| text.trim().parse().ok())
                .unwrap_or(65534)
        })
    }

    /// As of now: a process can enter another user namespace.
    fn all_have_numbers(self) -> bool {
        let file = match self {
            Kind::User => "/proc/self/uid_map",
            Kind::Group => "/proc/self/gid_map",
        };
        match fs::read_to_string(file) {
            Ok(map) => maps_all(&map),
            // A kernel without user namespaces, if there is a /proc at all.
            Err(error) => {
                error.kind() == io::ErrorKind::NotFound
                    && fs::exists("/proc/self/stat").is_ok_and(|there| there)
            }
        }
    }
}

/// Whether a map (first id inside, first id outside, how many) is of all ids that there are, 0 to 2^32 - 2.
fn maps_all(map: &str) -> bool {
    let counts = map.lines().filter_map(|line| {
        let count = line.split_whitespace().nth(2)?;
        count.parse::<u64>().ok()
    });
    counts.sum::<u64>() >= u64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps() {
        assert!(maps_all("         0          0 4294967295\n"));
        assert!(maps_all("0 0 1000\n1000 1000 4294966295\n"));
        assert!(!maps_all("         0       1000          1\n"));
        assert!(!maps_all("0 100000 65536\n"));
        assert!(!maps_all(""));
    }

    #[test]
    fn ordinary_numbers_are_whose_they_are() {
        for kind in [Kind::User, Kind::Group] {
            assert!(!kind.is_ambiguous(0));
            assert!(!kind.is_ambiguous(1000));
        }
    }
}
