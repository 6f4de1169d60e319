use std::{any::type_name, fmt};

use serde::{Deserialize, Serialize};

/// What a lane carries, as each side says when the lane is made. Both must say the same.
///
/// The name is that of the type without the modules it is in ([`Plain<my::shapes::Point>`](super::Plain) is a `Point`), so that
/// two programs can have it in different places; whoever wants another, or a version, says so
/// ([`Typed::named`](super::Typed::named), [`Typed::version`](super::Typed::version)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadType {
    pub(super) encoding: Encoding,
    pub(super) name: String,
    pub(super) version: u32,
}

/// How values lie in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Encoding {
    /// There are none.
    Bytes,
    /// As in memory.
    Plain { size: u64, align: u64 },
    /// One behind the other, as in memory.
    Slice { size: u64, align: u64 },
    /// As the codec of links writes them.
    Encoded,
}

/// The longest name, in bytes. A longer one is cut.
const MAX_NAME: usize = 256;

impl PayloadType {
    /// Of a lane that is not typed.
    pub(crate) fn bytes() -> PayloadType {
        PayloadType {
            encoding: Encoding::Bytes,
            name: String::new(),
            version: 0,
        }
    }

    pub(super) fn of<T: ?Sized>(encoding: Encoding) -> PayloadType {
        PayloadType {
            encoding,
            name: String::new(),
            version: 0,
        }
        .with_name(&without_modules(type_name::<T>()))
    }

    pub(super) fn with_name(mut self, name: &str) -> PayloadType {
        let mut end = name.len().min(MAX_NAME);
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        self.name = name[..end].to_owned();
        self
    }

    pub(super) fn with_version(mut self, version: u32) -> PayloadType {
        self.version = version;
        self
    }

    /// How long each value is, if all are of one length.
    pub(crate) fn len(&self) -> Option<usize> {
        match self.encoding {
            Encoding::Plain { size, .. } => usize::try_from(size).ok(),
            _ => None,
        }
    }

    /// The name of the type; empty for bytes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its version, 0 where none was given.
    pub fn version(&self) -> u32 {
        self.version
    }
}

impl fmt::Display for PayloadType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PayloadType { name, version, .. } = self;
        match self.encoding {
            Encoding::Bytes => write!(f, "bytes")?,
            Encoding::Plain { size, align } => {
                write!(f, "plain {name} ({size} bytes, aligned to {align})")?;
            }
            Encoding::Slice { size, align } => {
                write!(f, "slices of {name} ({size} bytes, aligned to {align})")?;
            }
            Encoding::Encoded => write!(f, "encoded {name}")?,
        }
        match version {
            0 => Ok(()),
            _ => write!(f, ", version {version}"),
        }
    }
}

/// `Vec<Point>` for `alloc::vec::Vec<shapes::Point>`: what a type is called wherever it is.
fn without_modules(name: &str) -> String {
    let mut short = String::with_capacity(name.len());
    let mut word = 0;
    for (at, character) in name.char_indices() {
        if !(character.is_alphanumeric() || character == '_' || character == ':') {
            short.push_str(last(&name[word..at]));
            short.push(character);
            word = at + character.len_utf8();
        }
    }
    short.push_str(last(&name[word..]));
    short
}

fn last(path: &str) -> &str {
    path.rsplit("::").next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_types_wherever_they_are() {
        for (whole, short) in [
            ("u64", "u64"),
            ("shapes::Point", "Point"),
            ("alloc::vec::Vec<shapes::flat::Point>", "Vec<Point>"),
            ("(u8, core::option::Option<a::B>)", "(u8, Option<B>)"),
            ("[a::b::C; 4]", "[C; 4]"),
            ("&a::B", "&B"),
        ] {
            assert_eq!(without_modules(whole), short, "{whole}");
        }
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        let name = PayloadType::of::<u8>(Encoding::Encoded).with_name(&"ä".repeat(200));
        assert_eq!(name.name(), "ä".repeat(128));
        let name = name.with_name(&format!("x{}", "ä".repeat(200)));
        assert_eq!(name.name().len(), 255);
    }

    #[test]
    fn says_what_it_is() {
        let plain = PayloadType::of::<u32>(Encoding::Plain { size: 4, align: 4 });
        assert_eq!(plain.to_string(), "plain u32 (4 bytes, aligned to 4)");
        let encoded = PayloadType {
            version: 2,
            ..PayloadType::of::<Vec<String>>(Encoding::Encoded)
        };
        assert_eq!(encoded.to_string(), "encoded Vec<String>, version 2");
    }
}
