//! Mending for real: the daemon that could make no pod makes one after the edit.

use std::{fs, time::Duration};

use pvelet_agent::{
    health::kubelet::facts::CgroupDriver,
    host::runtime::{ConfigText, Runtime, RuntimeFiles},
};
use pvelet_tests::{
    containerd::{Containerd, PAUSE, Place},
    faults::{Fault, Repaired},
};

use super::config::{CRI, alarms, files, source, start, worker};

const LONG: Duration = Duration::from_secs(60);

/// Why no sandbox is made; empty: one was, and is gone again.
pub(crate) async fn sandbox(containerd: &Containerd) -> String {
    let runtime = containerd.runtime();
    match runtime.run_sandbox(LONG).await {
        Ok(id) => {
            runtime.remove_sandbox(&id, LONG).await.unwrap();
            String::new()
        }
        Err(error) => error.to_string(),
    }
}

/// Mends the files in place; the checks that were mended.
pub(crate) async fn mend_for(containerd: &Containerd, driver: CgroupDriver) -> Vec<&'static str> {
    let (source, files) = (source(containerd, driver), files(containerd.place()));
    let mut mends = Vec::new();
    for mended in source.mend().await.unwrap() {
        let edit = ConfigText { path: mended.path.clone(), text: mended.text.clone() };
        files.try_edits(&[edit], LONG).await.unwrap();
        files.replace(&mended.path, &mended.was, &mended.text).await.unwrap();
        mends.extend(mended.mends);
    }
    mends
}

pub(crate) async fn mend(containerd: &Containerd) -> Vec<&'static str> {
    mend_for(containerd, CgroupDriver::Cgroupfs).await
}

#[tokio::test]
async fn the_missing_runtime_type_is_mended_and_pods_start_again() {
    let containerd = worker().await;
    let broken = containerd.config().replace("  runtime_type = \"io.containerd.runc.v2\"\n", "");
    assert!(start(&containerd, &broken).await);
    containerd.wait_image(PAUSE, true).await;
    let said = sandbox(&containerd).await;
    assert!(said.contains("container.Runtime.Name must be set"), "{said}");

    assert_eq!(mend(&containerd).await, ["containerd.runtime-type"]);
    let text = containerd.config();
    assert_eq!(text.replace("  runtime_type = \"io.containerd.runc.v2\"\n", ""), broken, "nothing else is touched");
    // Not before it is started anew.
    assert!(sandbox(&containerd).await.contains("container.Runtime.Name must be set"));
    assert!(start(&containerd, &text).await);
    assert_eq!(sandbox(&containerd).await, "");
    assert_eq!(alarms(&source(&containerd, CgroupDriver::Cgroupfs)).await, []);
    assert_eq!(mend(&containerd).await, [] as [&str; 0]);
}

#[tokio::test]
async fn every_fault_that_can_be_mended_is_gone_after_the_edit_and_a_restart() {
    let containerd = worker().await;
    let place = containerd.place();
    let import = place.folder().join("etc/runtime.toml");
    let cases: Vec<Case<'_>> = vec![
        (
            "CRI switched off",
            format!(
                "{}{}{}",
                place.head("disabled_plugins = [\"io.containerd.internal.v1.restart\", \"io.containerd.grpc.v1.cri\"]"),
                place.cri(""),
                Place::runc()
            ),
            &["containerd.cri-disabled"],
        ),
        ("the driver", place.healthy().replace("SystemdCgroup = false", "SystemdCgroup = true # why?"), &["containerd.cgroup-driver"]),
        (
            "both keys",
            format!("{}{}{}", place.head(""), place.cri("  systemd_cgroup = true\n"), Place::runc()),
            &["containerd.cgroup-keys"],
        ),
        ("no such default", place.healthy().replace("_name = \"runc\"", "_name = \"nvidia\""), &["containerd.runtime-type"]),
        (
            "only another runtime",
            format!("{}{}[{CRI}.containerd.runtimes.kata]\n  runtime_type = \"io.containerd.kata.v2\"\n", place.head(""), place.cri("")),
            &["containerd.runtime-type"],
        ),
        ("short names", place.healthy().replace("\"io.containerd.grpc.v1.cri\"", "cri"), &["containerd.config-version"]),
    ];
    fs::write(&import, format!("{}[{CRI}.containerd.runtimes.runc.options]\n  SystemdCgroup = false\n", place.cri(""))).unwrap();
    // Those that are in no other table.
    let more: Vec<Case<'_>> = vec![
        ("no version", place.healthy().replace("version = 2\n", ""), &["containerd.config-version"]),
        ("version 3, which 1.x does not know", place.healthy().replace("version = 2\n", "version = 3\n"), &["containerd.config-version"]),
        (
            "names of 2.x alone",
            format!("{}{}", place.head(""), place.cri("")).replace("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"),
            &["containerd.config-version"],
        ),
        ("options without a type, in an import", format!("imports = [{import:?}]\n{}", place.head("")), &["containerd.runtime-type"]),
    ];
    let mut wrong = unmended(&containerd, cases, |_, _| None).await;
    wrong += &unmended(&containerd, more, |name, check| Some(Fault::new(name, check))).await;
    assert!(wrong.is_empty(), "{wrong}");
}

/// A name, the file, the checks that are mended.
pub(crate) type Case<'a> = (&'a str, String, &'a [&'a str]);

/// Mends each; what is not mended as it should be, and with what no pod sandbox can be made afterwards.
pub(crate) async fn unmended(containerd: &Containerd, cases: Vec<Case<'_>>, line: impl Fn(&str, &str) -> Option<Fault>) -> String {
    let mut wrong = Vec::new();
    for (name, text, mends) in cases {
        let (mut fault, before) = (line(name, mends[0]), wrong.len());
        start(containerd, &text).await;
        let mended = mend(containerd).await;
        if mended == mends {
            fault.iter_mut().for_each(Fault::found);
        } else {
            wrong.push(format!("{name}: {mended:?}"));
        }
        let text = containerd.config();
        if !start(containerd, &text).await {
            wrong.push(format!("{name}: does not start:\n{text}\n{}", containerd.log().lines().last().unwrap_or_default()));
            continue;
        }
        containerd.wait_image(PAUSE, true).await;
        let said = sandbox(containerd).await;
        if !said.is_empty() {
            wrong.push(format!("{name}: {said}\n{text}"));
        }
        wrong.extend(alarms(&source(containerd, CgroupDriver::Cgroupfs)).await.into_iter().map(|f| format!("{name}: {f:#?}")));
        if wrong.len() == before {
            fault.iter_mut().for_each(|fault| fault.repaired(Repaired::Yes));
        }
    }
    wrong.join("\n")
}
