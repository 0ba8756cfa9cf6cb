//! Whether the kubelet would take its configuration.

use std::{path::Path, sync::Arc};

use super::setup::{Loaded, Reader, Setup, Standing};
use crate::health::{Check, Finding, Group, Pace, Source};

const CONFIG: &str = "kubelet.config";
const CHECKS: [Check; 1] = [Check {
    id: CONFIG,
    group: Group::Kubelet,
    why: "With a configuration that it does not take the kubelet does not start: the next restart, or reboot, takes the host out.",
}];

/// Reads the configuration.
pub(super) struct ConfigSource(pub(super) Arc<Reader>);

#[tonic::async_trait]
impl Source for ConfigSource {
    fn name(&self) -> &'static str {
        "kubelet-config"
    }

    fn checks(&self) -> &'static [Check] {
        &CHECKS
    }

    fn pace(&self) -> Pace {
        super::pace(self.0.settings.period)
    }

    async fn look(&self) -> Vec<Finding> {
        match self.0.read().await {
            Standing::No(why) => super::none(&CHECKS, &why),
            Standing::Worker(setup) => vec![judge(&setup, &self.0.settings.kubelet_unit)],
        }
    }
}

/// What is made of it. What containerd's configuration says against it is told there (`containerd.cgroup-driver`, `containerd.socket-path`),
/// where it can be mended.
fn judge(setup: &Setup, unit: &str) -> Finding {
    let path = setup.config_path.display().to_string();
    let finding = match &setup.config {
        Loaded::Unreadable(e) => Finding::unknown(CONFIG, e.to_string()),
        Loaded::Missing(missing) => Finding::failed(
            CONFIG,
            format!("{} is not there, and the kubelet is started with --config={}", missing.display(), missing.display()),
            format!("restore it; on a host of kubeadm: kubeadm upgrade node phase kubelet-config, then systemctl restart {unit}"),
        ),
        Loaded::Broken(broken) => {
            let place = broken.path.display();
            return Finding::failed(
                CONFIG,
                format!("{place}: {}", broken.what),
                format!("correct {place}, then: systemctl restart {unit}"),
            )
            .about(place.to_string());
        }
        Loaded::None if setup.flags.is_some() => Finding::ok(CONFIG, "the kubelet is set up by flags and its defaults"),
        Loaded::None => Finding::degraded(
            CONFIG,
            format!("{path} is not there"),
            "restore it; or name it (kubelet_config) in [health] of the agent's configuration".to_owned(),
        ),
        Loaded::Good(config) => {
            let wrong = values(setup);
            if !wrong.is_empty() {
                let remedy = format!("correct it in {path}, then: systemctl restart {unit}");
                return Finding::failed(CONFIG, format!("{path}: {}", wrong.join("; ")), remedy).about(path);
            }
            let driver = setup.flag("cgroup-driver").or(config.cgroup_driver.as_deref()).unwrap_or("cgroupfs");
            if !["systemd", "cgroupfs"].contains(&driver) {
                let seen = format!("{path}: cgroupDriver is '{driver}': kubelets take every word but 'systemd' for cgroupfs");
                return Finding::degraded(CONFIG, seen, format!("write cgroupDriver: systemd (or cgroupfs) in {path}")).about(path);
            }
            Finding::ok(CONFIG, format!("{path} is in order; cgroup driver {driver}"))
        }
    };
    finding.about(path)
}

/// Values with which the kubelet does not start.
fn values(setup: &Setup) -> Vec<String> {
    let (config, mut wrong) = match (setup.config(), setup.thresholds()) {
        (Ok(config), Ok(_)) => (config, Vec::new()),
        (Ok(config), Err(wrong)) => (config, wrong),
        (Err(_), _) => return Vec::new(),
    };
    if setup.flag("eviction-soft").is_none() {
        let periods = config.eviction_soft_grace_period.unwrap_or_default();
        let without = config.eviction_soft.unwrap_or_default().into_keys().filter(|signal| !periods.contains_key(signal));
        if setup.flag("eviction-soft-grace-period").is_none() {
            wrong.extend(without.map(|signal| format!("evictionSoft: {signal} has no time in evictionSoftGracePeriod")));
        }
    }
    let endpoint = setup.flag("container-runtime-endpoint").or(config.container_runtime_endpoint.as_deref()).unwrap_or_default();
    let socket = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if !endpoint.is_empty() && !Path::new(socket).is_absolute() {
        wrong.push(format!("containerRuntimeEndpoint is '{endpoint}', not unix:// and a path"));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{CONFIG as HEAD, Host},
        *,
    };
    use crate::{
        error::{Error, Trouble},
        health::State,
    };

    #[tokio::test]
    async fn what_kubelets_do_not_take_is_told() {
        let host = Host::new();
        for (text, state, seen) in [
            (HEAD.to_owned(), State::Ok, "config.yaml is in order; cgroup driver cgroupfs"),
            (format!("{HEAD}cgroupDriver: systemd\nfailSwapOn: false\nnew: {{}}\n"), State::Ok, "cgroup driver systemd"),
            (format!("{HEAD}evictionHard:\n  memory.available: 5%\n  pid.available: '1000'\n"), State::Ok, "is in order"),
            (format!("{HEAD}a: [\n"), State::Failed, "/var/lib/kubelet/config.yaml: line 4, column 1: did not find expected node content"),
            (
                HEAD.replace("v1beta1", "v1"),
                State::Failed,
                "line 1: apiVersion is 'kubelet.config.k8s.io/v1', not kubelet.config.k8s.io/v1beta1",
            ),
            (format!("{HEAD}cgroupDriver: Systemd\n"), State::Degraded, "cgroupDriver is 'Systemd'"),
            (
                format!("{HEAD}evictionHard:\n  memory.available: 5 GB\n"),
                State::Failed,
                "evictionHard: memory.available: '5 GB' is neither",
            ),
            (format!("{HEAD}evictionHard:\n  memory.free: 5Gi\n"), State::Failed, "the kubelet knows no signal 'memory.free'"),
            (format!("{HEAD}evictionSoft:\n  memory.available: 5Gi\n"), State::Failed, "has no time in evictionSoftGracePeriod"),
            (format!("{HEAD}evictionSoft:\n  memory.available: 5Gi\nevictionSoftGracePeriod:\n  memory.available: 1m\n"), State::Ok, ""),
            (format!("{HEAD}containerRuntimeEndpoint: containerd.sock\n"), State::Failed, "containerRuntimeEndpoint is 'containerd.sock'"),
            (format!("{HEAD}containerRuntimeEndpoint: /run/containerd/containerd.sock\n"), State::Ok, ""),
        ] {
            host.kubelet.write(&host.settings.kubelet_config, text.clone());
            let finding = host.finding(CONFIG).await;
            assert!(finding.state == state && finding.seen.contains(seen), "{text}\n{finding:?}");
            assert_eq!(finding.subjects, ["/var/lib/kubelet/config.yaml"]);
        }
    }

    #[tokio::test]
    async fn a_file_that_is_not_there_or_not_readable_is_told() {
        let host = Host::new();
        host.kubelet.change(|w| {
            w.files.clear();
            w.files.insert("/etc/kubernetes/kubelet.conf".into(), Ok(Vec::new()))
        });
        let finding = host.finding(CONFIG).await;
        assert!(finding.state == State::Failed && finding.seen.contains("started with --config="), "{finding:?}");
        let denied = Error::Look { trouble: Trouble::Denied, message: "denied".into() };
        host.kubelet.change(|w| w.files.insert("/var/lib/kubelet/config.yaml".into(), Err(denied)));
        assert_eq!(host.finding(CONFIG).await.state, State::Unknown);
        host.flags(&["--kubeconfig=/etc/kubernetes/kubelet.conf"]);
        assert_eq!(host.finding(CONFIG).await.state, State::Ok);
    }
}
