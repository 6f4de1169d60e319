//! Runnable programs, each with real processes.
//!
//! ```text
//! cargo run --release --example producer_consumer -- [FILE]    stream a file to several processes, and check it
//! cargo run --release --example publish                         the smallest publisher ...
//! cargo run --release --example subscribe                       ... and, in another terminal, the smallest subscriber
//! cargo run --example broker                                      sandboxed processes introduced to one another
//! cargo run --release --example successor                       replace a service 100 times under its clients' feet
//! cargo run --release --example wayland                         frames in a Wayland compositor, from shared memory
//! cargo run --release --example swap_chain                      large frames in three buffers that go there and back
//! cargo run --release --example latest                          the newest value: look, or sleep until it changes
//! cargo run --release --example loop_mio                        both ends of a lane in mio loops
//! cargo run --release --example loop_calloop                    a subscriber in a calloop, beside a timer
//! .ci/loops                                                     a subscriber in a C program that calls poll(2)
//! systemd-socket-activate --seqpacket --listen=PATH target/release/examples/activated    a service started by its client
//! ```
