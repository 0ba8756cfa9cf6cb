//! Compiles the .proto files without protoc. `google/rpc/status.proto` comes from tonic-types, so that its generated type is the one used.

use std::{env, error::Error, path::PathBuf};

use prost::Message;
use prost_types::FileDescriptorSet;
use protox::{
    Compiler,
    file::{ChainFileResolver, DescriptorSetFileResolver, GoogleFileResolver, IncludeFileResolver},
};

const FILES: [&str; 8] = [
    "pvelet/v1/certificate.proto",
    "pvelet/v1/common.proto",
    "pvelet/v1/health.proto",
    "pvelet/v1/host.proto",
    "pvelet/v1/network.proto",
    "pvelet/v1/operation.proto",
    "pvelet/v1/vm.proto",
    "pvelet/v1/volume.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=pvelet");
    let mut resolver = ChainFileResolver::new();
    resolver.add(IncludeFileResolver::new(PathBuf::from(env::var("CARGO_MANIFEST_DIR")?)));
    resolver.add(GoogleFileResolver::new());
    // tonic-types names its files without their folder.
    let mut google_rpc = FileDescriptorSet::decode(tonic_types::pb::FILE_DESCRIPTOR_SET)?;
    for file in google_rpc.file.iter_mut().filter(|f| f.package() == "google.rpc") {
        file.name = Some(format!("google/rpc/{}", file.name()));
    }
    resolver.add(DescriptorSetFileResolver::new(google_rpc));
    let mut compiler = Compiler::with_file_resolver(resolver);
    compiler.include_imports(true).include_source_info(true).open_files(FILES)?;
    let set = compiler.file_descriptor_set();

    // Served by reflection and walked by the authorization test; without comments, which are only needed for rustdoc.
    let mut served = set.clone();
    for file in &mut served.file {
        file.source_code_info = None;
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    std::fs::write(out.join("pvelet.v1.binpb"), served.encode_to_vec())?;

    let config = tonic_prost_build::configure().extern_path(".google.rpc", "::tonic_types::pb").codec_path("crate::codec::Codec");
    // Holds secrets: see src/secret.rs.
    config.skip_debug(["pvelet.v1.CloudInit"]).compile_fds(set)?;
    Ok(())
}
