/// Where a message is: what a record says in place of it.
///
/// From a peer it is any 24 bytes; [`PoolReader::resolve`](super::PoolReader::resolve) checks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRef {
    /// The segment's id.
    pub segment: u32,
    /// Number of the chunk in the segment.
    pub chunk: u32,
    /// The number of this send, not 0, and never another one's.
    pub sequence: u64,
    /// Length of the message, from the beginning of the chunk, in bytes.
    pub len: u64,
}

impl ChunkRef {
    /// Bytes in a record: segment and chunk (the low and the high half of a word), sequence, length. With the
    /// record's header that is half of a cache line.
    pub const LEN: usize = 24;

    /// As words of a record.
    pub fn to_words(self) -> [u64; 3] {
        let place = u64::from(self.segment) | u64::from(self.chunk) << 32;
        [place, self.sequence, self.len]
    }

    /// From the words of a record.
    pub fn from_words([place, sequence, len]: [u64; 3]) -> ChunkRef {
        ChunkRef {
            segment: place as u32,
            chunk: (place >> 32) as u32,
            sequence,
            len,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    documented!(ChunkRef::LEN);

    #[test]
    fn words_and_back() {
        let chunk = ChunkRef {
            segment: 0x0102_0304,
            chunk: 0xF5F6_F7F8,
            sequence: u64::MAX - 1,
            len: 1 << 40,
        };
        assert_eq!(chunk.to_words()[0], 0xF5F6_F7F8_0102_0304);
        assert_eq!(ChunkRef::from_words(chunk.to_words()), chunk);
        assert_eq!(chunk.to_words().len() * 8, ChunkRef::LEN);
    }
}
