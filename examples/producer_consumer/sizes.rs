//! Which sizes messages have.

use std::{fmt, str::FromStr};

#[derive(Clone, Debug)]
pub(crate) enum Sizes {
    Some(Vec<usize>),
    Range(usize, usize),
}

impl Sizes {
    /// The next size, in bytes.
    pub(crate) fn pick(&self, random: &mut fastrand::Rng) -> usize {
        match self {
            Sizes::Some(sizes) => sizes[random.usize(..sizes.len())],
            Sizes::Range(low, high) => {
                let (low, high) = (*low as f64, *high as f64);
                ((low.ln() + random.f64() * (high / low).ln()).exp().round() as usize).max(1)
            }
        }
    }

    /// The largest of them.
    pub(crate) fn largest(&self) -> usize {
        match self {
            Sizes::Some(sizes) => sizes.iter().copied().max().unwrap_or(0),
            Sizes::Range(_, high) => *high,
        }
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Sizes, String> {
        let size = |text: &str| match text.trim().parse::<usize>() {
            Ok(size) if size > 0 => Ok(size),
            _ => Err(format!(
                "expected a number of bytes from 1 on, got {text:?}"
            )),
        };
        match text.split_once("..") {
            Some((low, high)) => {
                let (low, high) = (size(low)?, size(high)?);
                if low > high {
                    return Err(format!(
                        "expected a range from small to large, got {low}..{high}"
                    ));
                }
                Ok(Sizes::Range(low, high))
            }
            None => Ok(Sizes::Some(
                text.split(',').map(size).collect::<Result<_, _>>()?,
            )),
        }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sizes::Some(sizes) => f.write_str(
                &sizes
                    .iter()
                    .map(usize::to_string)
                    .collect::<Vec<_>>()
                    .join(","),
            ),
            Sizes::Range(low, high) => write!(f, "{low}..{high}"),
        }
    }
}
