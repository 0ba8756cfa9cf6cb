//! `containerd.runtime-ready`, `containerd.network-ready`, `containerd.image-fs`, `containerd.plugins`: what the daemon tells of itself.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{
    PATIENCE,
    concern::{Concern, changed, trouble},
    pace,
};
use crate::{
    config,
    error::{Error, Trouble},
    health::{Check, Finding, Group, Pace, Source},
    host::{
        blocking::Blocking,
        room::{Room, room},
        runtime::{Plugin, Runtime, RuntimeStatus},
    },
};

const RUNTIME: &str = "containerd.runtime-ready";
const NETWORK: &str = "containerd.network-ready";
const IMAGE_FS: &str = "containerd.image-fs";
const PLUGINS: &str = "containerd.plugins";

const CHECKS: [Check; 4] = [
    Check {
        id: RUNTIME,
        group: Group::Containerd,
        why: "The kubelet makes the Node NotReady while its runtime says that it is not ready.",
    },
    Check {
        id: NETWORK,
        group: Group::Containerd,
        why: "Without a network plugin only pods in the host's network start, and the Node is NotReady.",
    },
    Check {
        id: IMAGE_FS,
        group: Group::Containerd,
        why: "Where images fill the disk, nothing is pulled any more and the kubelet evicts pods.",
    },
    Check { id: PLUGINS, group: Group::Containerd, why: "Without its CRI plugin containerd runs, but the kubelet cannot use it." },
];

/// What the kind of the CRI plugin is called.
const CRI: &str = "io.containerd.grpc.v1";
/// Its parts since 2.0.
const CRI_PARTS: &str = "io.containerd.cri.v1";
/// With this containerd ends the error of a plugin that does not fit the host, and is not missed.
const SKIPPED: &str = "skip plugin";

/// Asks at each period what the daemon tells of itself.
pub(super) struct Ready {
    concern: Arc<Concern>,
    runtime: Arc<dyn Runtime>,
    back: watch::Receiver<u64>,
    period: Duration,
    limits: Limits,
    place: Blocking,
}

/// From which share on a file system is told, percent.
#[derive(Debug, Clone, Copy)]
struct Limits {
    warning: u32,
    critical: u32,
}

impl Ready {
    pub(super) fn new(concern: Arc<Concern>, runtime: Arc<dyn Runtime>, back: &watch::Sender<u64>, settings: &config::Health) -> Self {
        let limits = Limits { warning: settings.usage_warning, critical: settings.usage_critical };
        Self { concern, runtime, back: back.subscribe(), period: settings.period, limits, place: Blocking::new() }
    }

    async fn image_fs(&self) -> Finding {
        let found = match self.runtime.image_fs(PATIENCE).await {
            Ok(found) if found.is_empty() => return Finding::unknown(IMAGE_FS, "containerd tells no file system of images"),
            Ok(found) => found,
            Err(error) => return unknown(IMAGE_FS, &error),
        };
        let mut worst: Option<Finding> = None;
        for mountpoint in found {
            let finding = match room(&self.place, &mountpoint).await {
                Ok(room) => judge_room(&mountpoint, &room, self.limits),
                Err(error) => unknown(IMAGE_FS, &error),
            };
            let finding = finding.about(mountpoint.display().to_string());
            worst = worst.filter(|w| w.state >= finding.state).or(Some(finding));
        }
        worst.unwrap_or_else(|| Finding::unknown(IMAGE_FS, "containerd tells no file system of images"))
    }
}

#[tonic::async_trait]
impl Source for Ready {
    fn name(&self) -> &'static str {
        "containerd-status"
    }

    fn checks(&self) -> &'static [Check] {
        &CHECKS
    }

    fn pace(&self) -> Pace {
        pace(self.period)
    }

    async fn look(&self) -> Vec<Finding> {
        if let Some(why) = self.concern.off() {
            return CHECKS.iter().map(|c| Finding::not_applicable(c.id, why)).collect();
        }
        let (status, plugins, image_fs) = tokio::join!(self.runtime.status(PATIENCE), self.runtime.plugins(PATIENCE), self.image_fs());
        let conditions = match &status {
            Ok(status) => vec![judge_condition(RUNTIME, status), judge_condition(NETWORK, status)],
            Err(error) => vec![unknown(RUNTIME, error), unknown(NETWORK, error)],
        };
        let plugins = match plugins {
            Ok(plugins) => judge_plugins(&plugins),
            Err(error) => unknown(PLUGINS, &error),
        };
        let mut findings = conditions;
        findings.extend([image_fs, plugins]);
        self.concern.judged(findings).await
    }

    async fn stirred(&self) {
        tokio::select! {
            () = self.concern.unit_changed() => {}
            () = changed(self.back.clone()) => {}
        }
    }
}

/// It could not be asked: that is told once, by `containerd.responding` or `containerd.plugins`.
fn unknown(id: &'static str, error: &Error) -> Finding {
    match trouble(error) {
        (Trouble::Unsupported, _) => Finding::unknown(id, "containerd serves no CRI v1 (see containerd.plugins)"),
        (_, message) => Finding::unknown(id, message),
    }
}

/// What a condition means.
fn judge_condition(id: &'static str, status: &RuntimeStatus) -> Finding {
    let kind = if id == RUNTIME { "RuntimeReady" } else { "NetworkReady" };
    let Some(condition) = status.conditions.iter().find(|c| c.kind == kind) else {
        return Finding::unknown(id, format!("containerd tells no condition {kind}"));
    };
    if condition.status {
        return Finding::ok(id, format!("{kind} is true"));
    }
    let seen = format!("{kind} is false: {}: {}", condition.reason, condition.message);
    if id == RUNTIME {
        return Finding::failed(id, seen, "see what containerd says: journalctl -u containerd -n 50");
    }
    // What it could not load is told apart from that there is nothing.
    let loaded = match status.cni.trim_matches('"') {
        "" | "OK" => String::new(),
        cni => format!(" (containerd last said: {cni})"),
    };
    let remedy = "install the cluster's network plugin on this node (its pods in the host's network do that), and see containerd.cni";
    Finding::failed(id, format!("{seen}{loaded}"), remedy)
}

/// What the plugins mean. Those that do not fit a host (devmapper, zfs ...) fail everywhere: only CRI's are needed.
fn judge_plugins(plugins: &[Plugin]) -> Finding {
    let parts: Vec<&Plugin> = plugins.iter().filter(|p| (p.kind == CRI && p.id == "cri") || p.kind == CRI_PARTS).collect();
    if !parts.iter().any(|p| p.kind == CRI) {
        return Finding::failed(
            PLUGINS,
            format!("containerd has not loaded its CRI plugin ({CRI}.cri): its configuration disables it"),
            "take \"cri\" out of disabled_plugins in containerd's configuration, then restart containerd (see containerd.cri-disabled)",
        );
    }
    let failed: Vec<&&Plugin> = parts.iter().filter(|p| !p.error.is_empty()).collect();
    // The plugin fails because a part of it did: the part says why.
    let cause = failed.iter().find(|p| p.kind == CRI_PARTS).or(failed.first());
    let Some(cause) = cause else {
        return Finding::ok(PLUGINS, "the CRI plugin is loaded");
    };
    let others: Vec<String> = plugins
        .iter()
        .filter(|p| !p.error.is_empty() && !p.error.contains(SKIPPED) && p.kind.starts_with("io.containerd.snapshotter"))
        .map(|p| format!("{}: {}", p.id, p.error))
        .collect();
    let others = if others.is_empty() { String::new() } else { format!("; snapshotters that are not there: {}", others.join(", ")) };
    Finding::failed(
        PLUGINS,
        format!("{}.{} could not be loaded: {}{others}", cause.kind, cause.id, cause.error),
        "mend what it names in containerd's configuration, then restart containerd",
    )
}

/// What the room of a file system means.
fn judge_room(mountpoint: &Path, room: &Room, limits: Limits) -> Finding {
    let place = mountpoint.display();
    if room.read_only {
        return Finding::failed(
            IMAGE_FS,
            format!("{place} is mounted read-only"),
            "see why: dmesg; a file system goes read-only after errors of the disk",
        );
    }
    let bytes = percent(room.total_bytes, room.free_bytes);
    let inodes = match (room.total_inodes, room.free_inodes) {
        (Some(total), Some(free)) => percent(total, free),
        _ => 0,
    };
    let seen = format!("{place}: {bytes} % of the bytes and {inodes} % of the inodes are used");
    let remedy = "remove images that nothing uses: crictl rmi --prune; then see what else fills it: du -xh";
    match bytes.max(inodes) {
        used if used >= limits.critical => Finding::failed(IMAGE_FS, format!("{seen}; {} % or more is critical", limits.critical), remedy),
        used if used >= limits.warning => Finding::degraded(IMAGE_FS, format!("{seen}; {} % or more is much", limits.warning), remedy),
        _ => Finding::ok(IMAGE_FS, seen),
    }
}

/// The used share, rounded up: the last free percent is not called full before it is.
fn percent(total: u64, free: u64) -> u32 {
    let used = u128::from(total.saturating_sub(free));
    let share = (used * 100).div_ceil(u128::from(total.max(1)));
    u32::try_from(share).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{health::State, host::runtime::RuntimeCondition};

    const LIMITS: Limits = Limits { warning: 85, critical: 95 };

    fn plugin(kind: &str, id: &str, error: &str) -> Plugin {
        Plugin { kind: kind.into(), id: id.into(), error: error.into() }
    }

    #[test]
    fn conditions_are_told_with_their_reason() {
        let network = RuntimeCondition {
            kind: "NetworkReady".into(),
            reason: "NetworkPluginNotReady".into(),
            message: "cni plugin not initialized".into(),
            ..RuntimeCondition::default()
        };
        let runtime = RuntimeCondition { kind: "RuntimeReady".into(), status: true, ..RuntimeCondition::default() };
        let status = RuntimeStatus {
            conditions: vec![network, runtime],
            cni: "no network config found in /etc/cni/net.d".into(),
            ..RuntimeStatus::default()
        };
        assert_eq!(judge_condition(RUNTIME, &status), Finding::ok(RUNTIME, "RuntimeReady is true"));
        let finding = judge_condition(NETWORK, &status);
        assert_eq!(finding.state, State::Failed);
        assert_eq!(
            finding.seen,
            "NetworkReady is false: NetworkPluginNotReady: cni plugin not initialized (containerd last said: no network config found in /etc/cni/net.d)"
        );
        assert_eq!(judge_condition(RUNTIME, &RuntimeStatus::default()).state, State::Unknown, "what is not told is not well");
    }

    #[test]
    fn only_plugins_of_cri_are_needed() {
        let devmapper = plugin("io.containerd.snapshotter.v1", "devmapper", "devmapper not configured");
        let zfs = plugin("io.containerd.snapshotter.v1", "zfs", "path must be a zfs filesystem: skip plugin");
        let otlp = plugin("io.containerd.tracing.processor.v1", "otlp", "skip plugin: tracing endpoint not configured");
        let usual = [devmapper, zfs, otlp];
        let with = |more: &[Plugin]| judge_plugins(&[&usual[..], more].concat());
        assert_eq!(with(&[plugin(CRI, "cri", "")]).state, State::Ok);
        assert_eq!(with(&[plugin(CRI_PARTS, "images", ""), plugin(CRI_PARTS, "runtime", ""), plugin(CRI, "cri", "")]).state, State::Ok);
        let disabled = with(&[plugin(CRI, "tasks", "")]);
        assert_eq!(disabled.state, State::Failed);
        assert!(disabled.seen.contains("configuration disables it"), "{disabled:?}");
        let broken = with(&[plugin(CRI, "cri", "invalid plugin config: no corresponding runtime configured")]);
        assert_eq!(
            broken.seen,
            "io.containerd.grpc.v1.cri could not be loaded: invalid plugin config: no corresponding runtime configured; snapshotters that are not there: devmapper: devmapper not configured"
        );
        let part = with(&[plugin(CRI_PARTS, "images", "failed to find snapshotter"), plugin(CRI, "cri", "no plugins registered")]);
        assert!(part.seen.starts_with("io.containerd.cri.v1.images could not be loaded: failed to find snapshotter"), "{part:?}");
    }

    #[test]
    fn room_is_judged_by_the_limits_of_the_configuration() {
        let fs = Path::new("/var/lib/containerd");
        let with = |free_bytes, free_inodes, read_only| {
            let room = Room { total_bytes: 1000, free_bytes, total_inodes: Some(1000), free_inodes, read_only };
            judge_room(fs, &room, LIMITS).state
        };
        let table = [
            (1000, Some(1000), false, State::Ok),
            (160, Some(1000), false, State::Ok),
            (150, Some(1000), false, State::Degraded),
            (60, Some(1000), false, State::Degraded),
            (50, Some(1000), false, State::Failed),
            (0, Some(1000), false, State::Failed),
            (1000, Some(10), false, State::Failed),
            // btrfs has no inodes to count.
            (1000, None, false, State::Ok),
            (1000, Some(1000), true, State::Failed),
        ];
        for (bytes, inodes, read_only, state) in table {
            assert_eq!(with(bytes, inodes, read_only), state, "{bytes} {inodes:?} {read_only}");
        }
        let empty = Room { total_bytes: 0, ..Room::default() };
        assert_eq!(judge_room(fs, &empty, LIMITS).state, State::Ok, "a file system without size is not full");
    }
}
