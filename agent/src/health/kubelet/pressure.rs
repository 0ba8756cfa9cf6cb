//! Swap, memory, disk, inodes and tasks, as the kubelet counts them.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    setup::{Reader, Setup, Standing},
    threshold::{Thresholds, size},
};
use crate::{
    error::Error,
    health::{Check, Finding, Group, Pace, Source, State},
    host::{kubelet::FileSystem, runtime::Runtime},
};

const SWAP: &str = "kubelet.swap";
const MEMORY: &str = "kubelet.memory";
const DISK: &str = "kubelet.disk";
const INODES: &str = "kubelet.inodes";
const PIDS: &str = "kubelet.pids";
const CHECKS: [Check; 5] = [
    Check { id: SWAP, group: Group::Kubelet, why: "A kubelet that is not told to live with swap does not start while there is any." },
    Check { id: MEMORY, group: Group::Kubelet, why: "Below its threshold of memory the kubelet evicts pods and takes no new ones." },
    Check {
        id: DISK,
        group: Group::Kubelet,
        why: "Below its thresholds of disk space the kubelet removes images, evicts pods and takes no new ones.",
    },
    Check {
        id: INODES,
        group: Group::Kubelet,
        why: "Below its thresholds of inodes the kubelet evicts pods; without inodes no file can be made.",
    },
    Check {
        id: PIDS,
        group: Group::Kubelet,
        why: "At the kernel's limit of tasks nothing can be started on the host; below its threshold the kubelet evicts pods.",
    },
];

/// Where containerd's packages have images, until containerd has told.
const IMAGES: &str = "/var/lib/containerd";
/// How long the runtime may take to tell where its images lie. It has answered once: from then on that is known.
const PATIENCE: Duration = Duration::from_secs(2);
/// Memory fills faster than disks: twice the threshold is near.
const NEAR_MEMORY: f64 = 2.0;
/// A tenth above the threshold is near.
const NEAR: f64 = 1.1;

/// All five.
pub(super) struct PressureSource {
    reader: Arc<Reader>,
    runtime: Arc<dyn Runtime>,
    /// Where images lie, as the runtime told.
    images: Mutex<Option<PathBuf>>,
}

impl PressureSource {
    pub(super) fn new(reader: Arc<Reader>, runtime: Arc<dyn Runtime>) -> Self {
        Self { reader, runtime, images: Mutex::default() }
    }

    async fn images(&self) -> PathBuf {
        let known = || self.images.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = known().clone() {
            return path;
        }
        let told = self.runtime.image_fs(PATIENCE).await.ok().and_then(|all| all.into_iter().next());
        match told.filter(|p| p.is_absolute()) {
            Some(path) => known().insert(path).clone(),
            None => IMAGES.into(),
        }
    }
}

#[tonic::async_trait]
impl Source for PressureSource {
    fn name(&self) -> &'static str {
        "kubelet-pressure"
    }

    fn checks(&self) -> &'static [Check] {
        &CHECKS
    }

    fn pace(&self) -> Pace {
        super::pace(self.reader.settings.period)
    }

    async fn look(&self) -> Vec<Finding> {
        let setup = match self.reader.read().await {
            Standing::No(why) => return super::none(&CHECKS, &why),
            Standing::Worker(setup) => setup,
        };
        let kubelet = &*self.reader.kubelet;
        let mut findings = vec![match kubelet.swaps().await {
            Err(e) => Finding::unknown(SWAP, e.to_string()),
            Ok(swaps) => swap(&setup, &swaps),
        }];
        let limits = match setup.thresholds() {
            Err(why) => {
                findings.extend([MEMORY, DISK, INODES, PIDS].map(|id| Finding::unknown(id, why.join("; "))));
                return findings;
            }
            Ok(thresholds) => {
                Limits { thresholds, warning: self.reader.settings.usage_warning, critical: self.reader.settings.usage_critical }
            }
        };
        findings.push(match kubelet.memory().await {
            Err(e) => Finding::unknown(MEMORY, e.to_string()),
            Ok(m) => memory(&limits, m.capacity, m.capacity.saturating_sub(m.working_set)),
        });
        findings.extend(disks(&limits, &self.file_systems(&setup).await));
        findings.push(match kubelet.tasks().await {
            Err(e) => Finding::unknown(PIDS, e.to_string()),
            Ok(t) => tasks(&limits, t.limit, t.limit.saturating_sub(t.running)),
        });
        findings
    }
}

impl PressureSource {
    /// nodefs and imagefs.
    async fn file_systems(&self, setup: &Setup) -> [Disk; 2] {
        let kubelet = &*self.reader.kubelet;
        let images = self.images().await;
        // A folder that is not made yet lies where its parent does.
        let near = |path: PathBuf| async move {
            for at in path.ancestors() {
                match kubelet.file_system(at).await {
                    Ok(None) => {}
                    other => return Disk { path: path.clone(), found: other },
                }
            }
            Disk { found: Ok(None), path }
        };
        [near(setup.root.clone()).await, near(images).await]
    }
}

/// A file system by the kubelet's name for it.
struct Disk {
    path: PathBuf,
    found: Result<Option<FileSystem>, Error>,
}

/// How much may be used.
struct Limits {
    thresholds: Thresholds,
    /// Percent; where the kubelet has no threshold, and for what is near one.
    warning: u32,
    critical: u32,
}

/// Something that can run out.
struct Gauge {
    signal: &'static str,
    /// As it is named in findings.
    name: String,
    capacity: u64,
    available: u64,
    /// So many times its threshold is near.
    near: f64,
    /// Whether the agent's own shares count too.
    shares: bool,
    show: fn(u64) -> String,
}

impl Limits {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few times a threshold, saturating")]
    fn judge(&self, gauge: &Gauge) -> (State, String) {
        let Gauge { signal, name, capacity, available, near, shares, show } = gauge;
        let limit = |of: &std::collections::BTreeMap<String, super::threshold::Threshold>| {
            of.get(*signal).map(|t| (t.of(*capacity), t.to_string()))
        };
        let (hard, soft) = (limit(&self.thresholds.hard), limit(&self.thresholds.soft));
        let percent = if *capacity == 0 { 0 } else { (u128::from(*available) * 100 / u128::from(*capacity)) as u64 };
        let used = 100 - percent.min(100);
        let seen = format!("{name}: {} of {} available ({percent} %)", show(*available), show(*capacity));
        if let Some((_, text)) = hard.as_ref().filter(|(limit, _)| available < limit) {
            return (State::Failed, format!("{seen}, below {signal} < {text}: the kubelet evicts pods"));
        }
        if let Some((_, text)) = soft.as_ref().filter(|(limit, _)| available < limit) {
            return (State::Degraded, format!("{seen}, below the soft threshold {signal} < {text}: soon the kubelet evicts pods"));
        }
        let close = |limit: u64| (*available as f64) < limit as f64 * near;
        let well = match &hard {
            Some((limit, text)) if close(*limit) || *shares && used >= u64::from(self.warning) => {
                return (State::Degraded, format!("{seen}, near {signal} < {text}"));
            }
            Some((_, text)) => format!("the kubelet evicts below {text}"),
            None if *shares && used >= u64::from(self.critical) => {
                return (State::Failed, format!("{seen}; the kubelet has no threshold for {signal}"));
            }
            None if *shares && used >= u64::from(self.warning) => {
                return (State::Degraded, format!("{seen}; the kubelet has no threshold for {signal}"));
            }
            None => "the kubelet has no threshold".to_owned(),
        };
        // In steps, so that a host in which nothing happens says the same each time.
        (State::Ok, format!("{name}: more than {} % available; {well}", percent / 10 * 10))
    }
}

fn finding(id: &'static str, (state, seen): (State, String), remedy: &str) -> Finding {
    let remedy = if state == State::Ok { String::new() } else { remedy.to_owned() };
    Finding { remedy, ..Finding::new(id, state, seen) }
}

fn memory(limits: &Limits, capacity: u64, available: u64) -> Finding {
    let gauge =
        Gauge { signal: "memory.available", name: "memory".into(), capacity, available, near: NEAR_MEMORY, shares: false, show: size };
    let remedy = "see what uses it: systemd-cgtop -m; VMs count too: give them less, or move some to another host";
    finding(MEMORY, limits.judge(&gauge), remedy)
}

fn tasks(limits: &Limits, capacity: u64, available: u64) -> Finding {
    let gauge =
        Gauge { signal: "pid.available", name: "tasks".into(), capacity, available, near: NEAR, shares: true, show: |n| n.to_string() };
    let remedy = "see who has most: ps -eo user,comm,nlwp --sort -nlwp | head; or raise kernel.pid_max and kernel.threads-max (sysctl)";
    finding(PIDS, limits.judge(&gauge), remedy)
}

/// Disk space and inodes of nodefs and imagefs; one line where both are the same.
fn disks(limits: &Limits, both: &[Disk; 2]) -> [Finding; 2] {
    const SPACE: &str = "see what uses it: du -xh --max-depth=2 / | sort -h | tail; remove unused images: crictl rmi --prune";
    const FILES: &str = "see where they are: du -x --inodes --max-depth=2 / | sort -n | tail; remove unused images: crictl rmi --prune";
    let same = matches!([&both[0].found, &both[1].found], [Ok(Some(a)), Ok(Some(b))] if a.device == b.device);
    let (mut space, mut inodes) = (Vec::new(), Vec::new());
    for (disk, kind) in both.iter().zip(["nodefs", "imagefs"]) {
        let path = disk.path.display();
        let found = match &disk.found {
            Err(e) => Err(e.to_string()),
            Ok(None) => Err(format!("{path} ({kind}) is not there")),
            Ok(Some(found)) => Ok(found),
        };
        let found = match found {
            Ok(found) => found,
            Err(why) => {
                space.push((State::Unknown, why.clone()));
                inodes.push((State::Unknown, why));
                continue;
            }
        };
        let name = if same {
            format!("{kind} (one with {})", if kind == "nodefs" { "imagefs" } else { "nodefs" })
        } else {
            format!("{kind} {path}")
        };
        let (bytes, files) =
            if kind == "nodefs" { ("nodefs.available", "nodefs.inodesFree") } else { ("imagefs.available", "imagefs.inodesFree") };
        let gauge =
            Gauge { signal: bytes, name, capacity: found.capacity, available: found.available, near: NEAR, shares: true, show: size };
        space.push(limits.judge(&gauge));
        // File systems that make inodes as they need them tell none.
        if found.inodes > 0 {
            let (capacity, available) = (found.inodes, found.inodes_free);
            inodes.push(limits.judge(&Gauge { signal: files, capacity, available, show: |n| n.to_string(), ..gauge }));
        }
    }
    let together = |id: &'static str, of: Vec<(State, String)>, remedy: &str| {
        let Some(worst) = of.iter().map(|(state, _)| *state).max() else {
            return Finding::not_applicable(id, "the file systems of the kubelet and of images make inodes as they need them");
        };
        // What is well is left out beside what is not.
        let told: Vec<String> =
            of.into_iter().filter(|(state, _)| worst == State::Ok || *state != State::Ok).map(|(_, seen)| seen).collect();
        let remedy = if worst == State::Unknown { "" } else { remedy };
        both.iter().fold(finding(id, (worst, told.join("; ")), remedy), |f, disk| f.about(disk.path.display().to_string()))
    };
    [together(DISK, space, SPACE), together(INODES, inodes, FILES)]
}

/// Swap, and whether the kubelet lives with it. It counts zram as well.
fn swap(setup: &Setup, swaps: &[String]) -> Finding {
    if swaps.is_empty() {
        return Finding::ok(SWAP, "no swap is in use");
    }
    let names = swaps.join(", ");
    let config = match setup.config() {
        Ok(config) => config,
        Err(why) if setup.switch("fail-swap-on").is_none() => return Finding::unknown(SWAP, format!("swap is on ({names}); {why}")),
        Err(_) => super::config::Config::default(),
    };
    if !setup.switch("fail-swap-on").or(config.fail_swap_on).unwrap_or(true) {
        let behaviour = config.memory_swap.and_then(|m| m.swap_behavior).filter(|b| !b.is_empty()).unwrap_or_else(|| "NoSwap".into());
        return Finding::ok(SWAP, format!("swap is on ({names}), and the kubelet is told to live with it: failSwapOn: false, {behaviour}"));
    }
    let zram = swaps.iter().all(|s| Path::new(s).file_name().is_some_and(|n| n.to_string_lossy().starts_with("zram")));
    let off = if zram { "remove zram-tools (or systemd-zram-generator)" } else { "swapoff -a, and take it out of /etc/fstab" };
    let remedy =
        format!("failSwapOn: false in {} (memorySwap.swapBehavior: LimitedSwap lets pods use it); or {off}", setup.config_path.display());
    let finding = if setup.active() {
        Finding::degraded(SWAP, format!("swap is on ({names}) and failSwapOn is true: the kubelet runs, but does not start again"), remedy)
    } else {
        Finding::failed(SWAP, format!("swap is on ({names}) and failSwapOn is true: the kubelet does not start"), remedy)
    };
    swaps.iter().fold(finding, |f, s| f.about(s.as_str()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{
        super::testing::{CONFIG, Host, UNIT},
        *,
    };
    use crate::{
        error::Trouble,
        host::{
            kubelet::{Memory, Tasks},
            units_fake::FakeUnits,
        },
    };

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;

    fn config(host: &Host, text: &str) {
        host.kubelet.write(&host.settings.kubelet_config, format!("{CONFIG}{text}"));
    }

    fn disk(available: u64) -> FileSystem {
        FileSystem { device: 1, capacity: 100 * GIB, available: available * GIB, inodes: 1000, inodes_free: 900 }
    }

    #[tokio::test]
    async fn memory_is_judged_by_the_kubelets_threshold() {
        let host = Host::new();
        for (told, available, state, seen) in [
            ("", 8192, State::Ok, "memory: more than 10 % available; the kubelet evicts below 100Mi"),
            // A host full of VMs is well.
            ("", 1024, State::Ok, "memory: more than 0 % available"),
            ("", 150, State::Degraded, "near memory.available < 100Mi"),
            ("", 50, State::Failed, "memory: 50Mi of 64Gi available (0 %), below memory.available < 100Mi: the kubelet evicts pods"),
            ("evictionHard: {memory.available: 5%}\n", 3000, State::Failed, "below memory.available < 5%"),
            ("evictionHard: {nodefs.available: 5%}\n", 50, State::Ok, "the kubelet has no threshold"),
            ("evictionHard: {nodefs.available: 5%}\nmergeDefaultEvictionSettings: true\n", 50, State::Failed, ""),
            ("evictionSoft: {memory.available: 1Gi}\n", 900, State::Degraded, "below the soft threshold memory.available < 1Gi"),
        ] {
            config(&host, told);
            host.kubelet.change(|w| w.memory = Ok(Memory { capacity: 64 * GIB, working_set: 64 * GIB - available * MIB }));
            let finding = host.finding(MEMORY).await;
            assert!(finding.state == state && finding.seen.contains(seen), "{told} {available}: {finding:?}");
            assert_eq!(finding.remedy.is_empty(), state == State::Ok);
        }
    }

    #[tokio::test]
    async fn disks_are_judged_by_both_thresholds_also_where_they_are_one() {
        let host = Host::new();
        let images = Path::new("/srv/images");
        host.runtime.change(|a| a.image_fs = Ok(vec![images.into()]));
        for (node, image, state, seen) in [
            (60, None, State::Ok, "nodefs (one with imagefs): more than 60 % available; the kubelet evicts below 10%; imagefs"),
            (16, None, State::Degraded, "imagefs (one with nodefs): 16Gi of 100Gi available (16 %), near imagefs.available < 15%"),
            (14, None, State::Failed, "below imagefs.available < 15%"),
            (60, Some(14), State::Failed, "imagefs /srv/images: 14Gi of 100Gi available (14 %), below imagefs.available < 15%"),
            (14, Some(60), State::Degraded, "nodefs /var/lib/kubelet: 14Gi of 100Gi available (14 %), near nodefs.available < 10%"),
            (9, Some(60), State::Failed, "below nodefs.available < 10%"),
        ] {
            host.kubelet.change(|w| {
                w.file_systems.insert("/".into(), Ok(Some(disk(node))));
                w.file_systems.remove(images);
                if let Some(image) = image {
                    w.file_systems.insert(images.into(), Ok(Some(FileSystem { device: 2, ..disk(image) })));
                }
            });
            let finding = host.finding(DISK).await;
            assert!(finding.state == state && finding.seen.contains(seen), "{node} {image:?}: {finding:?}");
        }
        assert_eq!(host.finding(DISK).await.subjects, ["/var/lib/kubelet", "/srv/images"]);
    }

    #[tokio::test]
    async fn a_runtime_that_is_down_does_not_hide_the_disks_and_a_dead_disk_is_unknown() {
        let host = Host::new();
        let down = Error::Look { trouble: Trouble::Refused, message: "nobody listens".into() };
        host.runtime.change(|a| a.image_fs = Err(down));
        assert_eq!(host.finding(DISK).await.subjects[1], IMAGES);
        let hung = Error::Look { trouble: Trouble::Silent, message: "/var/lib/containerd did not answer".into() };
        host.kubelet.change(|w| w.file_systems.insert(IMAGES.into(), Err(hung)));
        let finding = host.finding(DISK).await;
        assert!(finding.state == State::Unknown && finding.seen.contains("did not answer"), "{finding:?}");
        // A fault that is known is told all the same.
        host.kubelet.change(|w| w.file_systems.insert("/".into(), Ok(Some(disk(5)))));
        assert_eq!(host.finding(DISK).await.state, State::Failed);
        // Folders that are not made yet lie where their parents do.
        host.kubelet.change(|w| {
            w.file_systems.insert(IMAGES.into(), Ok(None));
            w.file_systems.insert("/var/lib".into(), Ok(Some(disk(80))));
        });
        assert!(host.finding(DISK).await.seen.contains("below nodefs.available"));
    }

    #[tokio::test]
    async fn inodes_run_out_only_where_they_are_counted() {
        let host = Host::new();
        for (inodes, free, state) in
            [(1000, 900, State::Ok), (1000, 60, State::Degraded), (1000, 40, State::Failed), (0, 0, State::NotApplicable)]
        {
            let found = FileSystem { inodes, inodes_free: free, ..disk(60) };
            host.kubelet.change(|w| w.file_systems.insert("/".into(), Ok(Some(found))));
            let finding = host.finding(INODES).await;
            assert_eq!(finding.state, state, "{finding:?}");
        }
    }

    #[tokio::test]
    async fn tasks_are_judged_though_kubelets_have_no_threshold_by_default() {
        let host = Host::new();
        for (told, running, state) in [
            ("", 2000, State::Ok),
            ("", 8600, State::Degraded),
            ("", 9600, State::Failed),
            ("evictionHard: {pid.available: 20%}\n", 7000, State::Ok),
            ("evictionHard: {pid.available: 20%}\n", 7900, State::Degraded),
            ("evictionHard: {pid.available: '3000'}\n", 7001, State::Failed),
        ] {
            config(&host, told);
            host.kubelet.change(|w| w.tasks = Ok(Tasks { running, limit: 10_000 }));
            let finding = host.finding(PIDS).await;
            assert_eq!(finding.state, state, "{told} {running}: {finding:?}");
        }
    }

    #[tokio::test]
    async fn swap_is_a_fault_only_for_kubelets_that_do_not_live_with_it() {
        let host = Host::new();
        assert_eq!(host.finding(SWAP).await.state, State::Ok);
        host.kubelet.change(|w| w.swaps = Ok(vec!["/dev/dm-1".into()]));
        for (told, flag, state) in [
            ("", "", State::Degraded),
            ("failSwapOn: true\n", "", State::Degraded),
            ("failSwapOn: false\n", "", State::Ok),
            ("failSwapOn: false\nmemorySwap: {swapBehavior: LimitedSwap}\nfeatureGates: {NodeSwap: true}\n", "", State::Ok),
            ("", "--fail-swap-on=false", State::Ok),
            ("failSwapOn: false\n", "--fail-swap-on", State::Degraded),
        ] {
            config(&host, told);
            host.flags(&["--config=/var/lib/kubelet/config.yaml", flag]);
            let finding = host.finding(SWAP).await;
            assert_eq!(finding.state, state, "{told} {flag}: {finding:?}");
        }
        config(&host, "");
        host.flags(&["--config=/var/lib/kubelet/config.yaml"]);
        host.units.set(UNIT, FakeUnits::dead());
        let dead = host.finding(SWAP).await;
        assert!(dead.state == State::Failed && dead.subjects == ["/dev/dm-1"], "{dead:?}");
        host.kubelet.change(|w| w.swaps = Ok(vec!["/dev/zram0".into()]));
        assert!(host.finding(SWAP).await.remedy.contains("zram"));
        config(&host, "a: [");
        assert_eq!(host.finding(SWAP).await.state, State::Unknown);
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_unknown_alone() {
        let host = Host::new();
        let denied = || Error::Look { trouble: Trouble::Denied, message: "denied".into() };
        host.kubelet.change(|w| (w.memory, w.swaps, w.tasks) = (Err(denied()), Err(denied()), Err(denied())));
        for (id, state) in
            [(SWAP, State::Unknown), (MEMORY, State::Unknown), (DISK, State::Ok), (INODES, State::Ok), (PIDS, State::Unknown)]
        {
            assert_eq!(host.finding(id).await.state, state, "{id}");
        }
    }
}
