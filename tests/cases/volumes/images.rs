//! Importing images: what is imported whole, and what is refused before a byte of it is copied.

use std::{fs, os::unix::fs::symlink, path::Path};

use pvelet_proto::v1;
use pvelet_tests::{
    Client, Stack,
    calls::{Refusal, succeeded},
    volumes::{Done, MIB, content_hash, fill, new_id, path_of, qemu_img, storage_path},
};
use sha2::Digest;
use tonic::Code;

use super::one_node;

fn image(location: v1::image_source::Location) -> v1::ImageSource {
    v1::ImageSource { location: Some(location), ..v1::ImageSource::default() }
}

fn file(name: &str) -> v1::ImageSource {
    image(v1::image_source::Location::File(name.into()))
}

async fn import(client: &Client, request_id: &str, id: &str, source: v1::ImageSource) -> Done {
    let source = Some(v1::create_volume_request::Source::Image(source));
    client.create_volume(v1::CreateVolumeRequest { source, ..client.volume_request(request_id, id, "local", 0) }).await
}

/// An image in the import folder, with bytes in it.
fn make(folder: &Path, name: &str, format: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    qemu_img(&["create", "-q", "-f", format, &path.display().to_string(), "5M"]).unwrap();
    fill(&path, format, 11, 2);
    path
}

#[tokio::test]
async fn images_of_both_formats_are_imported_byte_for_byte() {
    let mut stack = one_node();
    let folder = stack.agent("pve1").import_dir();
    let layout = stack.sim.node("pve1");
    let client = stack.operator("pve1");
    for format in ["raw", "qcow2"] {
        let path = make(&folder, &format!("a.{format}"), format);
        let id = new_id();
        let sha256 = hex::encode(sha2::Sha256::digest(fs::read(&path).unwrap()));
        let source = v1::ImageSource { sha256, ..file(&format!("a.{format}")) };
        succeeded(import(&client, format, &id, source).await);
        let made = client.volume(&id).await.unwrap();
        assert_eq!((made.size_bytes, made.format.as_str()), (5 * MIB, "raw"));
        assert_eq!(content_hash(&path_of(&layout, &made), "raw"), content_hash(&path, format), "{format}");
    }
    // And from PVE's own import folder.
    let imports = layout.host_path(&format!("{}/import", storage_path(&layout, "local")));
    fs::create_dir_all(&imports).unwrap();
    let path = make(&imports, "b.qcow2", "qcow2");
    let id = new_id();
    succeeded(import(&client, "volid", &id, image(v1::image_source::Location::Volid("local:import/b.qcow2".into()))).await);
    assert_eq!(content_hash(&path_of(&layout, &client.volume(&id).await.unwrap()), "raw"), content_hash(&path, "qcow2"));
}

#[tokio::test]
async fn what_leads_out_of_the_folder_or_to_other_files_is_refused() {
    let mut stack = one_node();
    let folder = stack.agent("pve1").import_dir();
    let client = stack.operator("pve1");
    let before = stack.sim.control().leftovers().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret.raw");
    fs::write(&secret, vec![7; 1 << 20]).unwrap();
    make(&folder, "good.qcow2", "qcow2");

    symlink(&secret, folder.join("link.raw")).unwrap();
    symlink(outside.path(), folder.join("linked")).unwrap();
    fs::hard_link(folder.join("good.qcow2"), folder.join("hard.qcow2")).unwrap();
    fs::create_dir(folder.join("folder")).unwrap();
    let text = |name: &str| folder.join(name).display().to_string();
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", &text("backing.qcow2")]).unwrap();
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        &format!("data_file={},data_file_raw=on", text("data.raw")),
        &text("data.qcow2"),
        "1M",
    ])
    .unwrap();
    qemu_img(&["create", "-q", "-f", "vmdk", &text("other.vmdk"), "1M"]).unwrap();
    let corrupt = make(&folder, "corrupt.qcow2", "qcow2");
    let mut bytes = fs::read(&corrupt).unwrap();
    bytes.truncate(bytes.len() / 3);
    fs::write(&corrupt, bytes).unwrap();

    for (n, (name, reason)) in [
        ("../secret.raw", "IMAGE_REFUSED"),
        ("/etc/passwd", "IMAGE_REFUSED"),
        ("link.raw", "IMAGE_REFUSED"),
        ("linked/secret.raw", "IMAGE_REFUSED"),
        ("hard.qcow2", "IMAGE_REFUSED"),
        ("folder", "IMAGE_REFUSED"),
        ("backing.qcow2", "IMAGE_REFUSED"),
        ("data.qcow2", "IMAGE_REFUSED"),
        ("other.vmdk", "IMAGE_REFUSED"),
        ("corrupt.qcow2", "IMAGE_CORRUPT"),
    ]
    .into_iter()
    .enumerate()
    {
        let refused = Refusal::of(import(&client, &format!("r{n}"), &new_id(), file(name)).await);
        refused.is(Code::InvalidArgument, reason, name);
        assert!(!refused.text.contains("root:"), "{}", refused.text);
    }
    Refusal::of(import(&client, "missing", &new_id(), file("nope.raw")).await).is(Code::NotFound, "IMAGE_NOT_FOUND", "nope.raw");
    let wrong = v1::ImageSource { sha256: "0".repeat(64), ..file("good.qcow2") };
    // The hard link is gone, so that only the checksum is wrong.
    fs::remove_file(folder.join("hard.qcow2")).unwrap();
    Refusal::of(import(&client, "sum", &new_id(), wrong).await).is(Code::InvalidArgument, "CHECKSUM_MISMATCH", "wrong checksum");
    let mut small = client.volume_request("small", &new_id(), "local", MIB);
    small.source = Some(v1::create_volume_request::Source::Image(file("good.qcow2")));
    Refusal::of(client.create_volume(small).await).is(Code::InvalidArgument, "INVALID_SIZE", "smaller than the image");
    assert_eq!(stack.sim.control().leftovers().unwrap(), before, "nothing is made for what is refused");
    assert!(client.volumes().await.is_empty());
}

#[tokio::test]
async fn a_volid_outside_content_type_import_is_refused() {
    let stack: Stack = one_node();
    let client = stack.operator("pve1");
    for (n, volid) in ["local:101/vm-101-disk-0.qcow2", "local:iso/a.iso", "/etc/passwd", "local:import/../a"].into_iter().enumerate() {
        let source = image(v1::image_source::Location::Volid(volid.into()));
        Refusal::of(import(&client, &format!("r{n}"), &new_id(), source).await).is(Code::InvalidArgument, "IMAGE_REFUSED", volid);
    }
    let source = image(v1::image_source::Location::Volid("local:import/none.qcow2".into()));
    Refusal::of(import(&client, "none", &new_id(), source).await).is(Code::NotFound, "IMAGE_NOT_FOUND", "no such import");
}
