//! What releases tell over CRI, in the shape of their Go structures.

use serde_json::json;

use super::{
    super::{
        super::super::{check::State, kubelet::facts::CgroupDriver},
        Cri, View,
        view::Cgroup,
        wanted,
    },
    fixtures::{GOOD, alarms, kubelet, one, running, status},
};

/// 1.6 and 1.7: the whole plugin. Names are as the structures' tags have them, `PodAnnotations` and all.
fn one_seven(kind: &str) -> serde_json::Value {
    let runtime = |kind: &str, options| {
        json!({
            "runtimeType": kind, "runtimePath": "", "runtimeEngine": "", "PodAnnotations": null, "ContainerAnnotations": null, "runtimeRoot": "",
            "options": options, "privileged_without_host_devices": false, "privileged_without_host_devices_all_devices_allowed": false,
            "baseRuntimeSpec": "", "cniConfDir": "", "cniMaxConfNum": 0, "snapshotter": "", "sandboxMode": "podsandbox",
        })
    };
    json!({
        "containerd": {
            "snapshotter": "overlayfs", "defaultRuntimeName": "runc", "defaultRuntime": runtime("", json!(null)),
            "untrustedWorkloadRuntime": runtime("", json!(null)), "runtimes": {"runc": runtime(kind, json!({"SystemdCgroup": true, "BinaryName": ""}))},
            "noPivot": false, "disableSnapshotAnnotations": true, "discardUnpackedLayers": false, "ignoreBlockIONotEnabledErrors": false,
            "ignoreRdtNotEnabledErrors": false,
        },
        "cni": {"binDir": "/opt/cni/bin", "confDir": "/etc/cni/net.d", "maxConfNum": 1, "setupSerially": false, "confTemplate": "", "ipPref": ""},
        "registry": {"configPath": "", "mirrors": null, "configs": {"r.example": {"auth": {"password": "hunter2"}}}, "auths": null, "headers": null},
        "imageDecryption": {"keyModel": "node"}, "disableTCPService": true, "streamServerAddress": "127.0.0.1", "enableSelinux": false,
        "sandboxImage": "registry.k8s.io/pause:3.9", "statsCollectPeriod": 10, "systemdCgroup": false, "enableCDI": false,
        "containerdRootDir": "/var/lib/containerd", "containerdEndpoint": "/run/containerd/containerd.sock",
        "rootDir": "/var/lib/containerd/io.containerd.grpc.v1.cri", "stateDir": "/run/containerd/io.containerd.grpc.v1.cri",
    })
}

/// 2.x: the runtime's part alone. 2.0 has `binDir`, from 2.1 on there is `binDirs`.
fn two(minor: u32, kind: &str) -> serde_json::Value {
    let cni =
        if minor == 0 { json!({"binDir": "/opt/cni/bin"}) } else { json!({"binDir": "", "binDirs": ["/opt/cni/bin", "/usr/lib/cni"]}) };
    let mut config = json!({
        "containerd": {
            "defaultRuntimeName": "runc",
            "runtimes": {"runc": {"runtimeType": kind, "runtimePath": "", "PodAnnotations": null, "ContainerAnnotations": null,
                "options": {"BinaryName": "", "CriuImagePath": "", "CriuWorkPath": "", "IoGid": 0, "IoUid": 0, "NoNewKeyring": false, "Root": "", "ShimCgroup": "", "SystemdCgroup": true},
                "privileged_without_host_devices": false, "cgroupWritable": false, "baseRuntimeSpec": "", "cniConfDir": "", "cniMaxConfNum": 0,
                "snapshotter": "", "sandboxer": "podsandbox", "io_type": ""}},
            "ignoreBlockIONotEnabledErrors": false, "ignoreRdtNotEnabledErrors": false,
        },
        "cni": {"confDir": "/etc/cni/net.d", "maxConfNum": 1, "setupSerially": false, "confTemplate": "", "ipPref": "", "useInternalLoopback": false},
        "enableSelinux": false, "selinuxCategoryRange": 1024, "maxContainerLogLineSize": 16384, "enableCDI": true, "cdiSpecDirs": ["/etc/cdi", "/var/run/cdi"],
        "containerdRootDir": "/var/lib/containerd", "containerdEndpoint": "/run/containerd/containerd.sock",
        "rootDir": "/var/lib/containerd/io.containerd.grpc.v1.cri", "stateDir": "/run/containerd/io.containerd.grpc.v1.cri",
    });
    for (key, value) in cni.as_object().unwrap() {
        config["cni"][key] = value.clone();
    }
    config
}

#[test]
fn what_each_release_tells_is_understood() {
    let old = View::told(&one_seven("io.containerd.runc.v2")).unwrap();
    assert_eq!((old.snapshotter.as_deref(), old.sandbox_image.as_deref()), (Some("overlayfs"), Some("registry.k8s.io/pause:3.9")));
    for (minor, bins) in [(0, vec!["/opt/cni/bin"]), (1, vec!["/opt/cni/bin", "/usr/lib/cni"]), (3, vec!["/opt/cni/bin", "/usr/lib/cni"])] {
        let new = View::told(&two(minor, "io.containerd.runc.v2")).unwrap();
        assert_eq!((&new.snapshotter, &new.sandbox_image), (&None, &None));
        assert_eq!(new.cni_bin, bins);
        for view in [&old, &new] {
            let runc = view.default().unwrap();
            assert_eq!(
                (view.default_runtime.as_str(), runc.kind.as_str(), &runc.cgroup),
                ("runc", "io.containerd.runc.v2", &Cgroup::Set(true))
            );
            assert_eq!((view.cni_conf.as_str(), view.endpoint.as_deref()), ("/etc/cni/net.d", Some("/run/containerd/containerd.sock")));
        }
    }
    for nothing in [json!(null), json!({}), json!([]), json!({"containerd": "x"}), json!("x")] {
        assert_eq!(View::told(&nothing), None);
    }
}

#[test]
fn what_a_release_tells_is_judged_and_its_secrets_stay() {
    for (version, config, file) in [
        ("1.6.20", one_seven(""), GOOD.to_owned()),
        ("1.7.24", one_seven(""), GOOD.to_owned()),
        ("v2.0.3", two(0, ""), "version = 3\n".to_owned()),
        ("v2.1.4", two(1, ""), "version = 3\n".to_owned()),
    ] {
        let mut facts = running(version, &[&file]);
        facts.cri = Cri::Up(Box::new(status(config)));
        let found = one(&facts, "containerd.runtime-type");
        assert_eq!(found.state, State::Failed, "{version}: {found:#?}");
        assert!(!format!("{:?}", super::super::analyse(&facts)).contains("hunter2"));
    }
}

#[test]
fn a_healthy_release_gives_no_alarm() {
    let three = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\nSystemdCgroup = true\n";
    let kind = "io.containerd.runc.v2";
    for (version, config, file) in [
        ("1.6.20", one_seven(kind), GOOD),
        ("1.7.24", one_seven(kind), GOOD),
        ("v2.0.3", two(0, kind), three),
        ("v2.3.4", two(3, kind), three),
    ] {
        let mut facts = running(version, &[file]);
        facts.cri = Cri::Up(Box::new(status(config)));
        assert_eq!(alarms(&facts), [], "{version}");
    }
}

#[test]
fn the_sandbox_image_of_2_x_comes_from_the_files_or_is_asked_for() {
    let mut facts = running("v2.1.4", &[]);
    facts.kubelet = Some(kubelet(CgroupDriver::Cgroupfs));
    assert_eq!(wanted(&facts).sandbox_image.as_deref(), Some("registry.k8s.io/pause:3.10"));
    facts.builtin = None;
    let wants = wanted(&facts);
    assert!(wants.builtin && wants.sandbox_image.is_none());
    assert_eq!(one(&facts, "containerd.sandbox-image").state, State::Unknown);
    // 1.x tells it itself.
    let mut facts = running("1.7.24", &[]);
    facts.builtin = None;
    assert!(!wanted(&facts).builtin);
    // The old name of the key wins over the new one.
    let facts = running(
        "v2.1.4",
        &[
            "version = 2\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = 'new'\n[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'old'\n",
        ],
    );
    assert_eq!(wanted(&facts).sandbox_image.as_deref(), Some("old"));
}

#[test]
fn the_snapshotter_of_an_old_section_comes_to_2_x_only_with_runtimes() {
    let old = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"zfs\"\n";
    let mut facts = running("v2.1.4", &[old]);
    assert_eq!(one(&facts, "containerd.snapshotter").state, State::Ok);
    facts = running("v2.1.4", &[&format!("{old}runtimes.runc.options.BinaryName = \"\"\n")]);
    assert_eq!(one(&facts, "containerd.snapshotter").state, State::Failed);
}

#[test]
fn where_the_new_name_has_a_key_the_old_one_is_passed_over() {
    let text = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.nvidia.options]\nBinaryName = \"n\"\n";
    assert_eq!(one(&running("v2.1.4", &[text]), "containerd.runtime-type").state, State::Degraded);
    let both = format!("{text}[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n");
    assert_eq!(one(&running("v2.1.4", &[&both]), "containerd.runtime-type").state, State::Ok);
}

#[test]
fn folders_of_cni_that_a_distribution_has_built_in_are_not_guessed() {
    let mut facts = running("1.7.24", &[GOOD]);
    facts.cri = Cri::NotLoaded;
    facts.builtin = None;
    assert!(wanted(&facts).cni_bin.is_empty() && wanted(&facts).builtin);
    facts.builtin = Some("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\n".into());
    assert_eq!(wanted(&facts).cni_bin, [std::path::PathBuf::from("/usr/lib/cni")]);
}
