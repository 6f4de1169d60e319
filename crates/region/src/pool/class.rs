//! Size classes: 1, 2, 3, 4 pages, then quarter steps of powers of two.

/// The class that holds `pages` pages.
#[inline]
pub(super) fn class(pages: usize) -> usize {
    let last = pages.max(1) - 1;
    if last < 4 {
        return last;
    }
    let shift = last.ilog2() as usize - 2;
    // 4 to 7: the quarter of the power of two that the last page lies in.
    4 * shift + (last >> shift)
}

/// How many pages a chunk of this class has.
pub(super) fn pages(class: usize) -> usize {
    if class < 4 {
        return class + 1;
    }
    (5 + class % 4) << (class / 4 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ones() {
        let sizes: Vec<_> = (0..17).map(pages).collect();
        let expected = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40];
        assert_eq!(sizes, expected);
        for class in [0, 3, 4, 7, 8, 11] {
            let row = format!("pages({class})");
            assert!(crate::documented::says(&row, pages(class) as u64));
        }
    }

    #[test]
    fn the_smallest_that_holds_it() {
        for len in 1..100_000 {
            let class = class(len);
            assert!(pages(class) >= len, "{len} pages in class {class}");
            assert!(class == 0 || pages(class - 1) < len, "{len} in {class}");
            assert!(
                len < 5 || pages(class) - len <= pages(class) / 5,
                "{len} pages waste"
            );
        }
        assert_eq!(class(0), 0);
    }
}
