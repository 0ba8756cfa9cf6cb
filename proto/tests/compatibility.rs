//! The committed descriptor set is what released clients were built with: nothing in it may vanish or change its meaning.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{collections::BTreeMap, env, fs, path::Path};

use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};

const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/pvelet.v1.binpb");

/// Everything a client depends on, one line each: `name -> shape`.
fn shape(set: &FileDescriptorSet) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for file in set.file.iter().filter(|f| f.package() == "pvelet.v1") {
        for service in &file.service {
            for m in &service.method {
                let streams = (m.client_streaming(), m.server_streaming());
                out.insert(
                    format!("rpc {}.{}", service.name(), m.name()),
                    format!("{} -> {} {streams:?}", m.input_type(), m.output_type()),
                );
            }
        }
        for message in &file.message_type {
            add_message(&mut out, "", message);
        }
        for e in &file.enum_type {
            add_enum(&mut out, "", e);
        }
    }
    out
}

fn add_message(out: &mut BTreeMap<String, String>, prefix: &str, message: &DescriptorProto) {
    let name = format!("{prefix}{}", message.name());
    for f in &message.field {
        let oneof = f.oneof_index.is_some() && !f.proto3_optional();
        out.insert(
            format!("field {name}#{}", f.number()),
            format!("{} {:?} {:?} {} oneof={oneof} optional={}", f.name(), f.r#type(), f.label(), f.type_name(), f.proto3_optional()),
        );
    }
    for nested in &message.nested_type {
        add_message(out, &format!("{name}."), nested);
    }
    for e in &message.enum_type {
        add_enum(out, &format!("{name}."), e);
    }
}

fn add_enum(out: &mut BTreeMap<String, String>, prefix: &str, e: &EnumDescriptorProto) {
    for v in &e.value {
        out.insert(format!("value {prefix}{}#{}", e.name(), v.number()), v.name().to_owned());
    }
}

#[test]
fn nothing_that_clients_use_has_vanished_or_changed() {
    if env::var_os("PVELET_BLESS").is_some() {
        fs::write(BASELINE, pvelet_proto::FILE_DESCRIPTOR_SET).unwrap();
    }
    let old = shape(&FileDescriptorSet::decode(fs::read(BASELINE).unwrap().as_slice()).unwrap());
    let new = shape(&FileDescriptorSet::decode(pvelet_proto::FILE_DESCRIPTOR_SET).unwrap());
    let broken: Vec<String> = old
        .iter()
        .filter(|(k, v)| new.get(*k) != Some(v))
        .map(|(k, v)| format!("{k}: was `{v}`, is `{}`", new.get(k).map_or("gone", String::as_str)))
        .collect();
    assert!(broken.is_empty(), "breaking changes:\n{}", broken.join("\n"));
    let fresh: Vec<&String> = new.keys().filter(|k| !old.contains_key(*k)).collect();
    assert!(
        fresh.is_empty(),
        "new parts are not in the committed set yet; PVELET_BLESS=1 cargo test -p pvelet-proto adds them:\n{fresh:#?}"
    );
}

#[test]
fn every_reason_is_documented() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/api.md")).unwrap();
    let missing: Vec<&&str> = pvelet_proto::reason::ALL.iter().filter(|r| !text.contains(&format!("| `{r}` |"))).collect();
    assert!(missing.is_empty(), "docs/api.md does not explain {missing:?}");
}

#[test]
fn every_message_field_and_method_is_documented() {
    let mut bare = Vec::new();
    for file in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("pvelet/v1")).unwrap() {
        let path = file.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (i, line) in lines.iter().enumerate() {
            let declares = ["message ", "enum ", "service ", "rpc ", "oneof "].iter().any(|k| line.starts_with(k))
                || (line.ends_with(';') && line.contains(" = ") && !line.starts_with("//") && !line.starts_with("syntax"));
            if declares && !lines[i - 1].starts_with("//") {
                bare.push(format!("{}:{}: {line}", path.display(), i + 1));
            }
        }
    }
    assert!(bare.is_empty(), "without a comment:\n{}", bare.join("\n"));
}
