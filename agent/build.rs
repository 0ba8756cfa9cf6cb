//! Compiles the .proto files of what the agent is a client of, without protoc.

use std::{env, error::Error, path::PathBuf};

use protox::Compiler;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let folder = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("proto");
    let mut compiler = Compiler::new([folder])?;
    compiler.include_source_info(true).open_files(["cri.proto", "introspection.proto"])?;
    tonic_prost_build::configure().build_server(false).compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
