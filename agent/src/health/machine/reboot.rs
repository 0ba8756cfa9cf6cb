//! Whether the host waits for a reboot.

use std::sync::Arc;

use super::{
    source::{Look, check},
    words::{list, unknown},
};
use crate::{
    error::Error,
    health::{Check, Finding, Pace, Source},
    host::machine::{Kernels, Machine},
};

const REBOOT: Check =
    check("host.reboot", "Until the host is rebooted, fixes of its kernel and of what runs since boot are installed and not in force.");

pub(super) fn source(pace: Pace, machine: &Arc<dyn Machine>) -> Arc<dyn Source> {
    let machine = Arc::clone(machine);
    let look = move || {
        let machine = Arc::clone(&machine);
        async move { vec![decide(&machine.kernels().await)] }
    };
    Look::new("reboot", &[REBOOT], pace, look).done()
}

/// A pending reboot is degraded, never failed: nothing is broken, and it waits for a maintenance window; yet the host is not what was installed,
/// and who asks which hosts are to be rebooted must find it.
fn decide(kernels: &Result<Kernels, Error>) -> Finding {
    let id = REBOOT.id;
    let kernels = match kernels {
        Ok(kernels) => kernels,
        Err(error) => return unknown(id, error),
    };
    let running = kernels.running.as_str();
    let mut why = Vec::new();
    if let Some(next) = next_kernel(kernels) {
        why.push(format!("kernel {next} is installed, {running} runs"));
    }
    if kernels.required {
        let of = if kernels.packages.is_empty() { String::new() } else { format!(" ({})", list(&kernels.packages)) };
        why.push(format!("a package asked for a reboot{of}"));
    }
    if why.is_empty() {
        let pinned = kernels.pinned.as_ref().map(|_| ", which is pinned").unwrap_or_default();
        return Finding::ok(id, format!("kernel {running} runs{pinned}"));
    }
    let remedy =
        "move or shut down the VMs and reboot the host in a maintenance window; to stay with this kernel: `proxmox-boot-tool kernel pin`";
    Finding::degraded(id, why.join("; "), remedy)
}

/// The kernel that would be booted instead of the one that runs.
///
/// Only a newer one of the same kind counts: a host may run an older or another kernel on purpose, and what boots then is not known here.
fn next_kernel(kernels: &Kernels) -> Option<&str> {
    if let Some(pinned) = &kernels.pinned {
        return (*pinned != kernels.running).then_some(pinned.as_str());
    }
    let (flavour, version) = parts(&kernels.running);
    let newest = kernels.installed.iter().filter(|k| parts(k).0 == flavour).max_by_key(|k| parts(k).1)?;
    (parts(newest).1 > version).then_some(newest.as_str())
}

/// A release such as `6.14.8-2-pve` or `6.12.48+deb13-cloud-amd64` as its kind ("pve", "cloud-amd64") and the numbers of its version.
fn parts(release: &str) -> (&str, Vec<u64>) {
    let digit = |part: &str| part.starts_with(|c: char| c.is_ascii_digit());
    let mut at = release.len();
    for part in release.rsplit('-') {
        if digit(part) {
            break;
        }
        at = at.saturating_sub(part.len() + 1);
    }
    let version = &release[..at];
    let flavour = release[at..].trim_start_matches('-');
    (flavour, version.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{error::Trouble, health::State};

    fn kernels(running: &str, installed: &[&str]) -> Kernels {
        Kernels { running: running.into(), installed: installed.iter().map(|k| (*k).to_owned()).collect(), ..Kernels::default() }
    }

    #[test]
    fn a_newer_kernel_of_the_same_kind_waits_for_a_reboot() {
        let ok = State::Ok;
        let pending = State::Degraded;
        let table = [
            (kernels("6.14.8-2-pve", &["6.14.8-2-pve"]), ok),
            (kernels("6.14.8-2-pve", &["6.14.8-2-pve", "6.14.11-1-pve"]), pending),
            (kernels("6.8.12-9-pve", &["6.8.12-10-pve", "6.8.12-9-pve"]), pending),
            // Opted in to a newer series; the default one stays installed and is upgraded.
            (kernels("6.17.2-1-pve", &["6.14.11-4-pve", "6.17.2-1-pve"]), ok),
            // PVE on Debian's kernel, or the other way round.
            (kernels("6.14.8-2-pve", &["6.14.8-2-pve", "6.19.1+deb14-amd64"]), ok),
            (kernels("6.12.41+deb13-amd64", &["6.12.48+deb13-amd64"]), pending),
            (kernels("6.12.48+deb13-amd64", &["6.12.48+deb13-cloud-amd64", "6.17.2-1-pve"]), ok),
            // A kernel of its own, whose image is elsewhere.
            (kernels("6.18.44", &[]), ok),
            (Kernels { pinned: Some("6.8.12-9-pve".into()), ..kernels("6.8.12-9-pve", &["6.14.8-2-pve"]) }, ok),
            (Kernels { pinned: Some("6.8.12-9-pve".into()), ..kernels("6.14.8-2-pve", &["6.14.8-2-pve"]) }, pending),
            (Kernels { required: true, packages: vec!["libc6".into()], ..kernels("6.14.8-2-pve", &["6.14.8-2-pve"]) }, pending),
        ];
        for (kernels, expected) in table {
            assert_eq!(decide(&Ok(kernels.clone())).state, expected, "{kernels:?}");
        }
        let hung = Error::Look { trouble: Trouble::Silent, message: "/boot did not answer".into() };
        assert_eq!(decide(&Err(hung)).state, State::Unknown);
    }

    proptest! {
        #[test]
        fn no_release_makes_it_panic(release in "([0-9.+-]|pve|é|\\PC){0,20}") {
            let _ = parts(&release);
        }
    }
}
