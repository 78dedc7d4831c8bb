//! Compiles `proto/**.proto` without protoc: protox parses, prost and tonic generate.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use protox::prost::Message as _;
use tonic_prost_build::FileDescriptorSet;

/// Messages whose `Debug` would print a key, a token or bytes that hold one. `src/redact.rs` has
/// their `Debug` by hand; a path also covers what is nested in the message.
const SECRET_MESSAGES: &[&str] = &[
    ".X509SVID",
    ".JWTSVID",
    ".WITSVID",
    ".ValidateJWTSVIDRequest",
    ".spiffe.broker.X509SVID",
    ".spiffe.broker.JWTSVID",
    ".spire.api.types.JWTSVID",
    ".spire.api.types.WITSVID",
    ".spire.api.types.JoinToken",
    ".spire.api.types.AttestationData",
    ".spire.api.server.agent.v1.CreateJoinTokenRequest",
    ".spire.api.agent.delegatedidentity.v1.X509SVIDWithKey",
    ".envoy.config.core.v3.DataSource",
    ".envoy.service.discovery.v3.DiscoveryResponse",
    ".envoy.service.discovery.v3.Resource",
];

/// Services that stream private keys: their server traits are generated a second time, with the
/// response as `crate::Encoded`. File, response message, Rust module of the other messages.
const ENCODED_SERVERS: &[(&str, &str, &str)] = &[
    ("spiffe/workload/workload.proto", "X509SVIDResponse", "crate::workload"),
    ("spiffe/broker/api.proto", "SubscribeToX509SVIDResponse", "crate::spiffe::broker"),
    (
        "spire/api/agent/delegatedidentity/v1/delegatedidentity.proto",
        "SubscribeToX509SVIDsResponse",
        "crate::spire::api::agent::delegatedidentity::v1",
    ),
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from("proto");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", root.display());
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);

    let mut compiler = protox::Compiler::new([&root])?;
    compiler.include_imports(true).include_source_info(true).open_files(proto_files(&root)?)?;
    let set = compiler.file_descriptor_set();

    write_descriptors(&set, &out_dir.join("descriptors.bin"))?;
    builder().compile_fds(set.clone())?;
    let encoded_dir = out_dir.join("encoded");
    fs::create_dir_all(&encoded_dir)?;
    for server in ENCODED_SERVERS {
        generate_encoded_server(&set, server, &encoded_dir)?;
    }
    Ok(())
}

fn builder() -> tonic_prost_build::Builder {
    tonic_prost_build::configure().emit_rerun_if_changed(false).skip_debug(SECRET_MESSAGES)
}

/// All `.proto` files under `dir`, sorted, so that the output does not depend on the file system.
fn proto_files(dir: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut files = Vec::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|ext| ext == "proto") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Writes the set that the library embeds: without comments and line numbers, nobody reads them there.
fn write_descriptors(set: &FileDescriptorSet, to: &Path) -> Result<(), Box<dyn Error>> {
    let mut bare = set.clone();
    for file in &mut bare.file {
        file.source_code_info = None;
    }
    fs::write(to, bare.encode_to_vec())?;
    Ok(())
}

/// Generates the server trait of one file once more, with one response type replaced.
fn generate_encoded_server(
    set: &FileDescriptorSet,
    (name, response, module): &(&str, &str, &str),
    out_dir: &Path,
) -> Result<(), Box<dyn Error>> {
    let mut file = set
        .file
        .iter()
        .find(|file| file.name() == *name)
        .ok_or("a file of ENCODED_SERVERS does not exist")?
        .clone();
    let prefix = match file.package() {
        "" => ".".to_owned(),
        package => format!(".{package}."),
    };
    let mut builder = builder().build_client(false).out_dir(out_dir);
    for message in std::mem::take(&mut file.message_type) {
        let rust = match message.name() {
            name if name == *response => "crate::Encoded".to_owned(),
            name => format!("{module}::{}", rust_name(name)),
        };
        builder = builder.extern_path(format!("{prefix}{}", message.name()), rust);
    }
    file.dependency.clear();
    file.source_code_info = None;
    builder.compile_fds(FileDescriptorSet { file: vec![file] })?;
    Ok(())
}

/// The name that prost gives a message; a name that breaks this rule does not compile.
fn rust_name(proto_name: &str) -> String {
    proto_name
        .replace("SVIDs", "sviDs")
        .replace("SVID", "svid")
        .replace("JWT", "Jwt")
        .replace("WIT", "Wit")
        .replace("PID", "Pid")
}
