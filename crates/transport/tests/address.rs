//! What an address is, and what it says when it cannot be one.

use memlane_transport::{Address, AddressError, MAX_NAME};

#[test]
fn text_and_back() {
    for text in [
        "/run/memlane/camera",
        "camera",
        "./camera",
        "@camera",
        "@a/b",
        "@@",
        "../x",
    ] {
        let address: Address = text.parse().unwrap();
        assert_eq!(address.to_string(), text);
    }
    assert_eq!("@camera".parse(), Address::abstract_name("camera"));
    assert_eq!("camera".parse(), Address::path("camera"));
    let odd = Address::path("@camera").unwrap();
    assert_eq!(odd.to_string(), "./@camera");
}

#[test]
fn lengths() {
    assert!(Address::path("x".repeat(MAX_NAME)).is_ok());
    assert!(Address::abstract_name("x".repeat(MAX_NAME)).is_ok());
    for error in [
        Address::path("x".repeat(108)).unwrap_err(),
        Address::abstract_name("x".repeat(108)).unwrap_err(),
    ] {
        assert!(
            matches!(error, AddressError::TooLong { length: 108, .. }),
            "{error:?}"
        );
        assert!(
            error.to_string().contains("108 bytes") && error.to_string().contains("107"),
            "{error}"
        );
    }
}

#[test]
fn longest_names_work() {
    let mut name = format!("memlane-test-{}-", std::process::id());
    name.push_str(&"x".repeat(MAX_NAME - name.len()));
    let address = Address::abstract_name(name).unwrap();
    let _listener = memlane_transport::Listener::bind(&address).unwrap();
    memlane_transport::Link::connect(&address).unwrap();
}

#[test]
fn nonsense() {
    assert_eq!(Address::path(""), Err(AddressError::Empty));
    assert_eq!("@".parse::<Address>(), Err(AddressError::Empty));
    assert!(matches!(
        Address::path("a\0b"),
        Err(AddressError::Nul { position: 1, .. })
    ));
    assert!(matches!(
        Address::abstract_name("ab\0"),
        Err(AddressError::Nul { position: 2, .. })
    ));
    for path in ["/", "..", "a/..", "a/"] {
        assert!(
            matches!(Address::path(path), Err(AddressError::NoFileName { .. })),
            "{path}"
        );
    }
}
