//! The decoder against bytes that a peer made up.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use memlane_transport::codec::{DecodeError, EncodeError, MAX_DEPTH, decode, encode, encode_into};
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Unit;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum All {
    Unit,
    New(Box<All>),
    Tuple(u8, i8, u16, i16),
    Struct {
        a: u32,
        b: i32,
        c: u64,
        d: i64,
        e: u128,
        f: i128,
    },
    Rest(
        f32,
        f64,
        char,
        String,
        Option<()>,
        Unit,
        Vec<Option<bool>>,
        BTreeMap<String, [u8; 3]>,
        (),
        [(); 3],
    ),
}

fn samples() -> Vec<All> {
    let map = BTreeMap::from([("a".to_owned(), [1, 2, 3]), ("ü".to_owned(), [0; 3])]);
    let list = vec![None, Some(true), Some(false)];
    vec![
        All::Unit,
        All::New(Box::new(All::New(Box::new(All::Unit)))),
        All::Tuple(250, -128, 251, -32768),
        All::Struct {
            a: u32::MAX,
            b: i32::MIN,
            c: u64::MAX,
            d: i64::MIN,
            e: u128::MAX,
            f: i128::MIN,
        },
        All::Rest(
            1.5,
            f64::MIN,
            '🚋',
            "tram".into(),
            Some(()),
            Unit,
            list,
            map,
            (),
            [(); 3],
        ),
        All::Rest(
            -0.0,
            f64::INFINITY,
            '\0',
            String::new(),
            None,
            Unit,
            vec![],
            BTreeMap::new(),
            (),
            [(); 3],
        ),
    ]
}

/// The format is bincode's, in both directions.
#[test]
fn the_bytes_are_bincode() {
    let config = bincode::config::standard();
    for sample in samples() {
        let bytes = encode(&sample, 1000).unwrap();
        assert_eq!(
            bytes,
            bincode::serde::encode_to_vec(&sample, config).unwrap()
        );
        assert_eq!(decode::<All>(&bytes).unwrap(), sample);
        for short in 0..bytes.len() {
            assert!(decode::<All>(&bytes[..short]).is_err());
        }
    }
}

#[test]
fn limits_of_encoding() {
    let text = "0123456789";
    assert!(matches!(
        encode(text, 10),
        Err(EncodeError::TooLarge {
            size: 11,
            limit: 10
        })
    ));
    assert_eq!(encode(text, 11).unwrap().len(), 11);
    let mut buffer = [0xaa; 12];
    assert_eq!(encode_into(text, &mut buffer).unwrap(), 11);
    assert_eq!(&buffer, b"\x0a0123456789\xaa");
    assert!(matches!(
        encode_into(text, &mut buffer[..4]),
        Err(EncodeError::TooLarge { size: 11, limit: 4 })
    ));
}

#[test]
fn bytes_left_over() {
    assert!(matches!(
        decode::<u8>(&[1, 2, 3]),
        Err(DecodeError::Trailing { count: 2 })
    ));
    assert!(matches!(
        decode::<()>(&[0]),
        Err(DecodeError::Trailing { count: 1 })
    ));
}

fn length(value: u64) -> Vec<u8> {
    encode(&value, 9).unwrap()
}

#[test]
fn lengths_beyond_the_bytes() {
    for announced in [1, 5, 1 << 32, u64::MAX] {
        let bytes = length(announced);
        assert!(matches!(
            decode::<String>(&bytes),
            Err(DecodeError::Length { left: 0, .. })
        ));
        assert!(matches!(
            decode::<Vec<u64>>(&bytes),
            Err(DecodeError::Length { left: 0, .. })
        ));
        assert!(matches!(
            decode::<BTreeMap<u8, u8>>(&bytes),
            Err(DecodeError::Length { left: 0, .. })
        ));
    }
}

/// bincode's own decoder goes round 2^32 times for five bytes, whatever its limit.
#[test]
fn elements_without_bytes() {
    let mut bytes = length(1 << 32);
    assert!(matches!(
        decode::<Vec<()>>(&bytes),
        Err(DecodeError::Length { .. })
    ));
    bytes = length(4);
    bytes.extend([0; 4]);
    assert!(matches!(
        decode::<Vec<()>>(&bytes),
        Err(DecodeError::EmptyElement)
    ));
    assert!(matches!(
        decode::<Vec<Unit>>(&bytes),
        Err(DecodeError::EmptyElement)
    ));
    assert!(matches!(
        decode::<Vec<[(); 32]>>(&bytes),
        Err(DecodeError::EmptyElement)
    ));
    assert!(matches!(
        decode::<HashSet<()>>(&bytes),
        Err(DecodeError::EmptyElement)
    ));
    assert!(matches!(
        decode::<BTreeMap<(), ()>>(&bytes),
        Err(DecodeError::EmptyElement)
    ));
    // Values without bytes are fine where keys have them, and empty sequences are fine everywhere.
    assert_eq!(decode::<BTreeSet<u8>>(&[2, 7, 8]).unwrap().len(), 2);
    assert_eq!(decode::<BTreeMap<u8, ()>>(&[2, 7, 8]).unwrap().len(), 2);
    assert_eq!(decode::<Vec<()>>(&[0]).unwrap().len(), 0);
}

#[test]
fn nesting() {
    #[derive(Debug, Serialize, Deserialize)]
    struct Node(Option<Box<Node>>);

    let chain = |depth: usize| {
        let mut bytes = vec![1; depth];
        bytes.push(0);
        bytes
    };
    // A node is two levels: the struct and the option.
    assert!(decode::<Node>(&chain(MAX_DEPTH / 2 - 1)).is_ok());
    assert!(matches!(
        decode::<Node>(&chain(MAX_DEPTH / 2)),
        Err(DecodeError::Depth)
    ));
    assert!(matches!(
        decode::<Node>(&chain(1 << 20)),
        Err(DecodeError::Depth)
    ));
    // Siblings do not add up.
    let wide: Vec<Option<(u8,)>> = vec![Some((1,)); 10 * MAX_DEPTH];
    assert_eq!(
        decode::<Vec<Option<(u8,)>>>(&encode(&wide, 1 << 20).unwrap()).unwrap(),
        wide
    );
}

#[test]
fn types_that_need_a_self_describing_format() {
    #[derive(Debug, Deserialize)]
    #[serde(untagged)]
    #[allow(dead_code)]
    enum Either {
        Number(u8),
        Text(String),
    }
    let error = decode::<Either>(&[1]).unwrap_err();
    assert!(error.to_string().contains("self-describing"), "{error}");
}
