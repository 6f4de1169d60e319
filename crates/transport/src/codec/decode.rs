//! bincode's format, read by a deserializer that believes no length; see the table in [`super`].

use bincode::Decode;
use bincode::config::Configuration;
use bincode::de::read::Reader;
use bincode::de::{Decoder as _, DecoderImpl};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};

use super::{DecodeError, MAX_DEPTH};

pub(super) fn run<T: DeserializeOwned>(
    bytes: &[u8],
    config: Configuration,
) -> Result<T, DecodeError> {
    let mut input = Input {
        decoder: DecoderImpl::new(Bytes(bytes), config, ()),
        levels: MAX_DEPTH,
    };
    let value = T::deserialize(&mut input)?;
    match input.left() {
        0 => Ok(value),
        count => Err(DecodeError::Trailing { count }),
    }
}

struct Bytes<'b>(&'b [u8]);

impl<'b> Bytes<'b> {
    fn take(&mut self, count: usize) -> Option<&'b [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }
}

impl Reader for Bytes<'_> {
    fn read(&mut self, target: &mut [u8]) -> Result<(), bincode::error::DecodeError> {
        let additional = target.len().saturating_sub(self.0.len());
        let bytes = self
            .take(target.len())
            .ok_or(bincode::error::DecodeError::UnexpectedEnd { additional })?;
        target.copy_from_slice(bytes);
        Ok(())
    }

    fn peek_read(&mut self, count: usize) -> Option<&[u8]> {
        self.0.get(..count)
    }

    fn consume(&mut self, count: usize) {
        self.0 = self.0.get(count..).unwrap_or(&[]);
    }
}

struct Input<'b> {
    decoder: DecoderImpl<Bytes<'b>, Configuration, ()>,
    /// Levels of nesting that may still be entered.
    levels: usize,
}

impl<'b> Input<'b> {
    fn left(&mut self) -> usize {
        self.decoder.reader().0.len()
    }

    fn value<T: Decode<()>>(&mut self) -> Result<T, DecodeError> {
        T::decode(&mut self.decoder).map_err(|error| match error {
            bincode::error::DecodeError::UnexpectedEnd { .. } => DecodeError::Short,
            error => DecodeError::Refused(error.to_string()),
        })
    }

    /// A length that the bytes left could hold, if each element takes one.
    fn length(&mut self) -> Result<usize, DecodeError> {
        let length = self.value()?;
        let left = self.left();
        if length > left {
            Err(DecodeError::Length { length, left })
        } else {
            Ok(length)
        }
    }

    fn bytes(&mut self) -> Result<&'b [u8], DecodeError> {
        let length = self.length()?;
        self.decoder
            .reader()
            .take(length)
            .ok_or(DecodeError::Length { length, left: 0 })
    }

    fn string(&mut self) -> Result<&'b str, DecodeError> {
        std::str::from_utf8(self.bytes()?).map_err(|error| DecodeError::Refused(error.to_string()))
    }

    /// Runs `inner` one level down.
    fn nested<R>(
        &mut self,
        inner: impl FnOnce(&mut Self) -> Result<R, DecodeError>,
    ) -> Result<R, DecodeError> {
        self.levels = self.levels.checked_sub(1).ok_or(DecodeError::Depth)?;
        let result = inner(self);
        self.levels += 1;
        result
    }
}

impl serde::de::Error for DecodeError {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        DecodeError::Refused(message.to_string())
    }
}

macro_rules! primitives {
    ($($method:ident $visit:ident),+ $(,)?) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            visitor.$visit(self.value()?)
        })+
    };
}

impl<'de> Deserializer<'de> for &mut Input<'_> {
    type Error = DecodeError;

    primitives! {
        deserialize_bool visit_bool,
        deserialize_u8 visit_u8,
        deserialize_u16 visit_u16,
        deserialize_u32 visit_u32,
        deserialize_u64 visit_u64,
        deserialize_u128 visit_u128,
        deserialize_i8 visit_i8,
        deserialize_i16 visit_i16,
        deserialize_i32 visit_i32,
        deserialize_i64 visit_i64,
        deserialize_i128 visit_i128,
        deserialize_f32 visit_f32,
        deserialize_f64 visit_f64,
        deserialize_char visit_char,
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_str(self.string()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_string(self.string()?.to_owned())
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_bytes(self.bytes()?)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_byte_buf(self.bytes()?.to_owned())
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.value::<u8>()? {
            0 => visitor.visit_none(),
            1 => self.nested(|input| visitor.visit_some(input)),
            other => Err(DecodeError::Refused(format!(
                "an option is marked {other}, expected 0 or 1"
            ))),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.nested(|input| visitor.visit_newtype_struct(input))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let left = self.length()?;
        self.nested(|input| {
            visitor.visit_seq(Elements {
                input,
                left,
                counted: true,
            })
        })
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.nested(|input| {
            visitor.visit_seq(Elements {
                input,
                left: len,
                counted: false,
            })
        })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_tuple(len, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let left = self.length()?;
        self.nested(|input| {
            visitor.visit_map(Elements {
                input,
                left,
                counted: true,
            })
        })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_tuple(fields.len(), visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.nested(|input| visitor.visit_enum(Variant { input }))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, DecodeError> {
        Err(not_self_describing())
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, _: V) -> Result<V::Value, DecodeError> {
        Err(not_self_describing())
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, DecodeError> {
        Err(not_self_describing())
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

fn not_self_describing() -> DecodeError {
    DecodeError::Refused("the type needs a self-describing format, and this one is not".to_owned())
}

struct Elements<'a, 'b> {
    input: &'a mut Input<'b>,
    left: usize,
    /// The peer chose the number: each element must take a byte. A tuple's number comes from the type.
    counted: bool,
}

impl<'de> SeqAccess<'de> for Elements<'_, '_> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DecodeError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let before = self.input.left();
        let value = seed.deserialize(&mut *self.input)?;
        if self.counted && self.input.left() == before {
            return Err(DecodeError::EmptyElement);
        }
        Ok(Some(value))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

impl<'de> MapAccess<'de> for Elements<'_, '_> {
    type Error = DecodeError;

    // The key must take a byte: a map with keys that take none has at most one entry anyway.
    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DecodeError> {
        self.next_element_seed(seed)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, DecodeError> {
        seed.deserialize(&mut *self.input)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

struct Variant<'a, 'b> {
    input: &'a mut Input<'b>,
}

impl<'de> EnumAccess<'de> for Variant<'_, '_> {
    type Error = DecodeError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Self), DecodeError> {
        let index: u32 = self.input.value()?;
        let value = seed.deserialize(IntoDeserializer::<DecodeError>::into_deserializer(index))?;
        Ok((value, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_, '_> {
    type Error = DecodeError;

    fn unit_variant(self) -> Result<(), DecodeError> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(
        self,
        seed: T,
    ) -> Result<T::Value, DecodeError> {
        seed.deserialize(self.input)
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.input.deserialize_tuple(len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.input.deserialize_tuple(fields.len(), visitor)
    }
}
