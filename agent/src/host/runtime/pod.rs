//! The pod sandbox that the agent makes to see whether pods can be made.

use std::collections::HashMap;

use serde_json::Value;

use super::api::cri;

/// The label by which the agent's own sandboxes are found, and its value.
const MARK: (&str, &str) = ("pvelet.dev/probe", "pod-sandbox");

/// Its uid. Always the same: the runtime refuses a second one of that name, so at most one can be left.
pub(super) const UID: &str = "6a0c4c0e-5d0f-5a5e-9c6b-707665c67400";

/// Where it goes when systemd keeps the control groups: a slice that every systemd has, so that none of ours stays.
const SLICE: &str = "system.slice";

/// The mark.
pub(super) fn mark() -> HashMap<String, String> {
    HashMap::from([(MARK.0.to_owned(), MARK.1.to_owned())])
}

/// A sandbox in the host's network: no address is used up, and CNI is not asked. It has none of the kubelet's labels; the kubelet removes it
/// all the same when it happens to see it, as it does with every pod that it does not know.
///
/// `runtime`: the CRI plugin's configuration, as it tells it itself.
pub(super) fn config(runtime: &Value) -> cri::PodSandboxConfig {
    let namespaces = cri::NamespaceOption {
        network: cri::NamespaceMode::Node.into(),
        pid: cri::NamespaceMode::Container.into(),
        ipc: cri::NamespaceMode::Pod.into(),
    };
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata { name: "pvelet-probe".into(), uid: UID.into(), namespace: "pvelet".into(), attempt: 0 }),
        // The kubelet always gives one; without any the runtime copies the host's file, and fails where there is none.
        dns_config: Some(cri::DnsConfig { options: vec!["ndots:1".into()], ..cri::DnsConfig::default() }),
        labels: mark(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: if systemd_cgroups(runtime) { SLICE } else { "/" }.into(),
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces),
                seccomp: Some(cri::SecurityProfile { profile_type: cri::security_profile::ProfileType::RuntimeDefault.into() }),
            }),
        }),
        ..cri::PodSandboxConfig::default()
    }
}

/// Whether systemd keeps the control groups of the default runtime. runc refuses a path where it expects a slice.
fn systemd_cgroups(runtime: &Value) -> bool {
    let containerd = &runtime["containerd"];
    let default = containerd["defaultRuntimeName"].as_str().unwrap_or("runc");
    let option = &containerd["runtimes"][default]["options"]["SystemdCgroup"];
    // The second is the switch of old configurations, for the runtime without shim options.
    option.as_bool().or(runtime["systemdCgroup"].as_bool()).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use serde_json::json;

    use super::*;

    fn parent(runtime: &Value) -> String {
        config(runtime).linux.unwrap().cgroup_parent
    }

    #[test]
    fn the_parent_group_is_what_the_driver_of_the_default_runtime_takes() {
        let with =
            |default: &str, runc: Value| json!({"containerd": {"defaultRuntimeName": default, "runtimes": {"runc": {"options": runc}}}});
        assert_eq!(parent(&with("runc", json!({"SystemdCgroup": true}))), "system.slice");
        assert_eq!(parent(&with("runc", json!({"SystemdCgroup": false}))), "/");
        assert_eq!(parent(&with("runc", json!({}))), "/");
        assert_eq!(parent(&with("runc", Value::Null)), "/");
        // Another runtime's switch says nothing.
        assert_eq!(parent(&with("kata", json!({"SystemdCgroup": true}))), "/");
        assert_eq!(parent(&json!({"systemdCgroup": true})), "system.slice");
        assert_eq!(parent(&Value::Null), "/");
    }

    #[test]
    fn it_has_no_label_of_the_kubelet() {
        let config = config(&Value::Null);
        assert!(config.labels.keys().all(|k| !k.contains("kubernetes")));
        assert_eq!(config.linux.unwrap().security_context.unwrap().namespace_options.unwrap().network(), cri::NamespaceMode::Node);
    }
}
