//! A listener that is there twice in one process.

use memlane_transport::{Address, Link, Listener};

#[test]
fn the_file_goes_with_the_last_of_them() {
    let directory = std::env::temp_dir().join(format!("memlane-twice-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let address = Address::path(directory.join("service")).unwrap();
    for first_goes_first in [true, false] {
        let first = Listener::bind(&address).unwrap();
        let second = first.try_clone().unwrap();
        assert_eq!(second.address(), &address);
        // Whoever of the two accepts first gets the next client.
        for listener in [&first, &second] {
            let client = Link::connect(&address).unwrap();
            let accepted = listener.accept().unwrap();
            client.send(&1_u8).unwrap();
            assert_eq!(accepted.recv::<u8>().unwrap(), 1);
        }
        first.announce_again();
        let (goes, stays) = match first_goes_first {
            true => (first, second),
            false => (second, first),
        };
        drop(goes);
        let client = Link::connect(&address).unwrap();
        drop((stays.accept().unwrap(), client));
        drop(stays);
        assert!(!directory.join("service").exists());
    }
    std::fs::remove_dir_all(&directory).unwrap();
}
