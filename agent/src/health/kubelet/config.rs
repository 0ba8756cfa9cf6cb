//! `KubeletConfiguration`: what of it matters here, read as the kubelet reads it.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

/// The only version and kind that kubelets take.
const API: &str = "kubelet.config.k8s.io/v1beta1";
const KIND: &str = "KubeletConfiguration";

/// What matters of the configuration. Fields that are not known here are left alone.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Config {
    api_version: Option<String>,
    kind: Option<String>,
    pub(super) cgroup_driver: Option<String>,
    pub(super) container_runtime_endpoint: Option<String>,
    pub(super) healthz_port: Option<u16>,
    pub(super) healthz_bind_address: Option<String>,
    #[serde(deserialize_with = "truth")]
    pub(super) fail_swap_on: Option<bool>,
    pub(super) memory_swap: Option<MemorySwap>,
    pub(super) eviction_hard: Option<BTreeMap<String, String>>,
    pub(super) eviction_soft: Option<BTreeMap<String, String>>,
    pub(super) eviction_soft_grace_period: Option<BTreeMap<String, String>>,
    #[serde(deserialize_with = "truth")]
    pub(super) merge_default_eviction_settings: Option<bool>,
    #[serde(deserialize_with = "truth")]
    pub(super) rotate_certificates: Option<bool>,
    #[serde(rename = "serverTLSBootstrap", deserialize_with = "truth")]
    pub(super) server_tls_bootstrap: Option<bool>,
    pub(super) tls_cert_file: Option<PathBuf>,
}

/// `memorySwap`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct MemorySwap {
    pub(super) swap_behavior: Option<String>,
}

/// The kubelet reads YAML 1.1, in which `yes` and `off` are truth values too.
fn truth<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    struct Truth;
    impl<'de> de::Visitor<'de> for Truth {
        type Value = Option<bool>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("true or false")
        }

        fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
            Ok(Some(value))
        }

        fn visit_str<E: de::Error>(self, value: &str) -> Result<Self::Value, E> {
            match value.to_ascii_lowercase().as_str() {
                "yes" | "y" | "on" => Ok(Some(true)),
                "no" | "n" | "off" => Ok(Some(false)),
                _ => Err(E::invalid_value(de::Unexpected::Str(value), &self)),
            }
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
    }
    deserializer.deserialize_any(Truth)
}

/// Why the kubelet does not take a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Broken {
    /// The file.
    pub(super) path: PathBuf,
    /// What is wrong, with line and column where they are known.
    pub(super) what: String,
}

/// Merges the main file with those of the drop-in folder, in order, as JSON merge patches. Errors: the first file that is broken.
pub(super) fn merge<'a>(files: impl IntoIterator<Item = (&'a Path, &'a [u8])>) -> Result<Config, Broken> {
    let mut merged = Value::Object(serde_json::Map::new());
    for (path, bytes) in files {
        let broken = |what: String| Broken { path: path.to_owned(), what };
        let text = std::str::from_utf8(bytes).map_err(|e| broken(format!("byte {}: no UTF-8", e.valid_up_to() + 1)))?;
        patch(&mut merged, one(text).map_err(broken)?);
    }
    Config::deserialize(merged).map_err(|e| Broken { path: PathBuf::new(), what: e.to_string() })
}

/// One file.
fn one(text: &str) -> Result<Value, String> {
    let value: Value = first(text)?;
    // For the line of a value of the wrong type. A key that stands there twice is no fault: the kubelet takes the last.
    let typed: Result<Config, String> = first(text);
    let config = typed.or_else(|e| Config::deserialize(&value).map_err(|_| e))?;
    let version = config.api_version.unwrap_or_default();
    let kind = config.kind.unwrap_or_default();
    let line = |key: &str| text.lines().position(|l| l.trim_start_matches(['"', ' ', '{']).starts_with(key)).map_or(1, |n| n + 1);
    if kind != KIND {
        return Err(format!("line {}: kind is '{kind}', not {KIND}", line("kind")));
    }
    if version != API {
        return Err(format!("line {}: apiVersion is '{version}', not {API}", line("apiVersion")));
    }
    Ok(value)
}

/// The first document of a file: the kubelet leaves out others.
fn first<T: for<'de> Deserialize<'de> + Default>(text: &str) -> Result<T, String> {
    match serde_norway::Deserializer::from_str(text).next() {
        None => Ok(T::default()),
        Some(document) => T::deserialize(document).map_err(|e| match e.location() {
            // The place stands in front, as compilers write it.
            Some(at) => {
                let said = e.to_string();
                let place = format!(" at line {} column {}", at.line(), at.column());
                format!("line {}, column {}: {}", at.line(), at.column(), said.replace(&place, ""))
            }
            None => e.to_string(),
        }),
    }
}

/// RFC 7396.
fn patch(target: &mut Value, with: Value) {
    let Value::Object(with) = with else {
        *target = with;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    if let Value::Object(target) = target {
        for (key, value) in with {
            if value.is_null() {
                target.remove(&key);
            } else {
                patch(target.entry(key).or_insert(Value::Null), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

    fn read(text: &str) -> Result<Config, String> {
        merge([(Path::new("/c"), text.as_bytes())]).map_err(|b| b.what)
    }

    #[test]
    fn a_configuration_of_kubeadm_is_read() {
        let text = format!(
            "{HEAD}authentication:\n  anonymous:\n    enabled: false\ncgroupDriver: systemd\nclusterDNS:\n- 10.96.0.10\n\
             containerRuntimeEndpoint: unix:///run/containerd/containerd.sock\nfailSwapOn: false\nhealthzBindAddress: 127.0.0.1\n\
             healthzPort: 10248\nrotateCertificates: true\nserverTLSBootstrap: true\nmemorySwap: {{}}\nlogging:\n  verbosity: 0\n\
             evictionHard:\n  memory.available: 1Gi\nsomethingNew: [1, 2]\n"
        );
        let config = read(&text).unwrap();
        assert_eq!(config.cgroup_driver.as_deref(), Some("systemd"));
        assert_eq!((config.fail_swap_on, config.rotate_certificates, config.server_tls_bootstrap), (Some(false), Some(true), Some(true)));
        assert_eq!(config.eviction_hard.unwrap()["memory.available"], "1Gi");
    }

    #[test]
    fn what_kubelets_take_is_no_fault() {
        for (what, text) in [
            ("JSON", r#"{"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", "failSwapOn": false}"#.to_owned()),
            ("truth of YAML 1.1", format!("{HEAD}failSwapOn: off\n")),
            ("a key twice", format!("{HEAD}failSwapOn: true\nfailSwapOn: false\n")),
            ("a second document", format!("---\n{HEAD}failSwapOn: false\n---\nwhatever: {{\n")),
            ("comments", format!("# mine\n\n{HEAD}failSwapOn: False # swap is wanted\n")),
        ] {
            assert_eq!(read(&text).unwrap_or_else(|e| panic!("{what}: {e}")).fail_swap_on, Some(false), "{what}");
        }
        assert_eq!(read(&format!("{HEAD}failSwapOn:\n")).unwrap().fail_swap_on, None);
    }

    #[test]
    fn a_mistake_is_told_with_its_line_and_column() {
        let mut other = Vec::new();
        for (text, said) in [
            (format!("{HEAD}a: [1\nb: 2\n"), "line 4, column 2: did not find expected ',' or ']'"),
            (
                format!("{HEAD}failSwapOn: perhaps\n"),
                "line 3, column 13: failSwapOn: invalid value: string \"perhaps\", expected true or false",
            ),
            (format!("{HEAD}healthzPort: 99999\n"), "line 3, column 14: healthzPort: invalid value"),
            (format!("{HEAD}evictionHard: 5\n"), "line 3, column 15: evictionHard: invalid type"),
            (format!("{HEAD}\tcgroupDriver: systemd\n"), "line 3, column 1: found a tab character"),
            ("kind: KubeletConfiguration\napiVersion: v1\n".into(), "line 2: apiVersion is 'v1', not kubelet.config.k8s.io/v1beta1"),
            ("apiVersion: v1\nkind: Config\n".into(), "line 2: kind is 'Config', not KubeletConfiguration"),
            (String::new(), "line 1: kind is '', not KubeletConfiguration"),
            ("just text".into(), "line 1, column 1: invalid type: string \"just text\""),
        ] {
            let error = read(&text).unwrap_err();
            if !error.starts_with(said) {
                other.push((text, error));
            }
        }
        assert!(other.is_empty(), "{other:#?}");
        assert_eq!(merge([(Path::new("/c"), &b"kind: \xff"[..])]).unwrap_err().what, "byte 7: no UTF-8");
    }

    #[test]
    fn drop_ins_are_merged_key_by_key_and_the_broken_one_is_named() {
        let main = format!("{HEAD}cgroupDriver: cgroupfs\nevictionHard:\n  memory.available: 1Gi\n  nodefs.available: 5%\n");
        let one = format!("{HEAD}evictionHard:\n  nodefs.available: 20%\ncgroupDriver: systemd\n");
        let files = |last: &'static str| [("/c", main.clone()), ("/d/10.conf", one.clone()), ("/d/20.conf", last.to_owned())];
        let merged = |last| {
            let files = files(last);
            merge(files.iter().map(|(p, t)| (Path::new(*p), t.as_bytes())))
        };
        let config = merged("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nfailSwapOn: false\n").unwrap();
        assert_eq!((config.cgroup_driver.as_deref(), config.fail_swap_on), (Some("systemd"), Some(false)));
        let hard = config.eviction_hard.unwrap();
        assert_eq!((hard["memory.available"].as_str(), hard["nodefs.available"].as_str()), ("1Gi", "20%"));
        let broken = merged("failSwapOn: false\n").unwrap_err();
        assert_eq!(broken.path, Path::new("/d/20.conf"));
    }

    proptest! {
        #[test]
        fn no_text_ends_the_reading_badly(text in "\\PC{0,200}", lines in prop::collection::vec("[a-zA-Z]{1,12}: ?[\\[\\]{}a-z0-9\"'|>&*!-]{0,8}", 0..12)) {
            let _ = read(&text);
            let _ = read(&format!("{HEAD}{}", lines.join("\n")));
        }
    }
}
