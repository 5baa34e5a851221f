//! Turns `proto/*.proto` into Rust. protox parses them in Rust, so no `protoc` has to be installed.

use std::error::Error;

const FILES: [&str; 3] = ["proto/rpc.proto", "proto/raft.proto", "proto/kv.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    // Payload fields become `Bytes`: slices of the received frame, not copies of it.
    prost_build::Config::new().bytes(["."]).compile_fds(descriptors)?;
    Ok(())
}
