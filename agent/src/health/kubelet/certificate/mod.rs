//! The kubelet's certificates: that with which it goes to the API server, and that with which it serves.

mod kubeconfig;
mod leaf;
#[cfg(test)]
mod tests;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use self::{kubeconfig::Credentials, leaf::Leaf};
use super::{
    config::Config,
    setup::{Reader, Setup, Standing},
    when,
};
use crate::{
    error::Error,
    health::{Check, Finding, Group, Pace, Source},
    host::{clock::Clock, kubelet::Kubelet},
};

const CLIENT: &str = "kubelet.client-certificate";
const SERVING: &str = "kubelet.serving-certificate";
const CHECKS: [Check; 2] = [
    Check {
        id: CLIENT,
        group: Group::Kubelet,
        why: "Once it has expired the API server refuses the kubelet: the Node is NotReady until somebody renews it by hand.",
    },
    Check { id: SERVING, group: Group::Kubelet, why: "Logs, exec and metrics of this host's pods come over it." },
];

/// Clocks of two hosts differ by that much at most while both are synchronised.
const SKEW: Duration = Duration::from_secs(60);
/// Certificates last for months.
const SLOWEST: Duration = Duration::from_secs(60);

/// Both certificates.
pub(super) struct CertificateSource {
    pub(super) reader: Arc<Reader>,
    pub(super) clock: Arc<dyn Clock>,
}

/// The host, as the kubelet names it.
struct Host {
    /// The node's name; `None`: the kubelet may have been given another one.
    node: Option<String>,
    /// Addresses, those of `--node-ip` alone where they are given.
    addresses: Vec<IpAddr>,
    now: SystemTime,
    warning: Duration,
}

#[tonic::async_trait]
impl Source for CertificateSource {
    fn name(&self) -> &'static str {
        "kubelet-certificates"
    }

    fn checks(&self) -> &'static [Check] {
        &CHECKS
    }

    fn pace(&self) -> Pace {
        super::pace(self.reader.settings.period.max(SLOWEST))
    }

    async fn look(&self) -> Vec<Finding> {
        let setup = match self.reader.read().await {
            Standing::No(why) => return super::none(&CHECKS, &why),
            Standing::Worker(setup) => setup,
        };
        let config = match setup.config() {
            Ok(config) => config,
            Err(e) => return CHECKS.iter().map(|c| Finding::unknown(c.id, e.clone())).collect(),
        };
        let kubelet = &*self.reader.kubelet;
        let host = self.host(&setup).await;
        let client = client(kubelet, &setup, &config, &host).await.unwrap_or_else(|finding| finding);
        let serving = serving(kubelet, &setup, &config, &host).await.unwrap_or_else(|finding| finding);
        vec![client, serving]
    }
}

impl CertificateSource {
    async fn host(&self, setup: &Setup) -> Host {
        let kubelet = &self.reader.kubelet;
        let node = match (&setup.flags, setup.flag("hostname-override")) {
            (_, Some(name)) => Some(name.to_lowercase()),
            (Some(_), None) => kubelet.host_name().await.ok().map(|n| n.to_lowercase()).filter(|n| !n.is_empty()),
            // It has not been seen running: it may be told another name.
            (None, None) => None,
        };
        let told: Vec<IpAddr> =
            setup.flag("node-ip").into_iter().flat_map(|l| l.split(',')).filter_map(|a| a.trim().parse().ok()).collect();
        let addresses = match told.iter().any(|a| !a.is_unspecified()) {
            true => told,
            false => kubelet.addresses().await.unwrap_or_default(),
        };
        Host { node, addresses, now: self.clock.now(), warning: self.reader.settings.certificate_warning }
    }
}

/// A certificate and where it lies.
struct Placed {
    place: String,
    leaf: Leaf,
}

/// Reads a certificate from a file. `Ok(None)`: there is no such file. Errors: the finding of that.
async fn placed(kubelet: &dyn Kubelet, id: &'static str, path: &Path) -> Result<Option<Placed>, Finding> {
    let place = path.display().to_string();
    let unknown =
        |why: String| Finding { remedy: format!("look at it: openssl x509 -noout -text -in {place}"), ..Finding::unknown(id, why) };
    match kubelet.file(path).await {
        Err(Error::Look { message, .. }) => Err(unknown(message).about(place)),
        Err(e) => Err(unknown(e.to_string()).about(place)),
        Ok(None) => Ok(None),
        Ok(Some(bytes)) => match Leaf::from_pem(&bytes) {
            Ok(leaf) => Ok(Some(Placed { place, leaf })),
            Err(e) => Err(unknown(format!("{place} {e}")).about(place)),
        },
    }
}

async fn client(kubelet: &dyn Kubelet, setup: &Setup, config: &Config, host: &Host) -> Result<Finding, Finding> {
    let Some(path) = &setup.kubeconfig else {
        return Ok(Finding::not_applicable(CLIENT, "the kubelet runs stand-alone: it has no kubeconfig"));
    };
    let place = path.display().to_string();
    let bytes = match kubelet.file(path).await {
        Err(e) => return Err(Finding::unknown(CLIENT, e.to_string()).about(place)),
        Ok(None) => return Err(not_joined(setup, &place)),
        Ok(Some(bytes)) => bytes,
    };
    let broken = |e: String| {
        let remedy = format!("correct {place}, or join the cluster again");
        Finding::failed(CLIENT, format!("{place}: {e}"), remedy).about(place.clone())
    };
    let rotating = setup.switch("rotate-certificates").or(config.rotate_certificates).unwrap_or(false);
    let current = setup.pki.join("kubelet-client-current.pem");
    let named = match kubeconfig::credentials(&bytes).map_err(broken)? {
        Credentials::Other(how) => {
            return Ok(Finding::not_applicable(CLIENT, format!("{place}: the kubelet authenticates with {how}")).about(place));
        }
        Credentials::Inline(pem) => match Leaf::from_pem(&pem) {
            Ok(leaf) => Named::Static(Placed { place: format!("client-certificate-data of {place}"), leaf }),
            Err(e) => return Err(Finding::unknown(CLIENT, format!("client-certificate-data of {place} {e}")).about(place)),
        },
        Credentials::File(file) => {
            let file = path.parent().unwrap_or(Path::new("/")).join(file);
            match (file == current, placed(kubelet, CLIENT, &file).await?) {
                (_, None) => Named::Gone(file),
                (true, Some(placed)) => Named::Current(placed),
                (false, Some(placed)) => Named::Static(placed),
            }
        }
    };
    // A kubelet that rotates has its newest certificate in its folder, whatever the kubeconfig names.
    let newest = match (rotating, &named) {
        (true, Named::Static(_) | Named::Gone(_)) => placed(kubelet, CLIENT, &current).await?,
        _ => None,
    };
    Ok(judge_client(newest, named, rotating, host))
}

fn not_joined(setup: &Setup, place: &str) -> Finding {
    let finding = match setup.flag("bootstrap-kubeconfig") {
        Some(bootstrap) => Finding::degraded(
            CLIENT,
            format!("{place} is not there: the kubelet has not got its certificate yet, and asks for it by {bootstrap}"),
            "kubectl get csr; kubectl certificate approve <name>".to_owned(),
        ),
        None => Finding::failed(
            CLIENT,
            format!("{place} is not there"),
            "join the cluster (again): kubeadm token create --print-join-command, on a control plane host".to_owned(),
        ),
    };
    finding.about(place)
}

/// The certificate that the kubeconfig names.
enum Named {
    /// That which the kubelet renews.
    Current(Placed),
    /// One that nobody renews.
    Static(Placed),
    /// A file that is not there.
    Gone(PathBuf),
}

fn judge_client(newest: Option<Placed>, named: Named, rotating: bool, host: &Host) -> Finding {
    let renew = if rotating {
        "the kubelet could not renew it: see kubelet.errors; kubectl get csr; then, or once it has expired, join the cluster again"
    } else {
        "renew it, or let the kubelet: rotateCertificates: true in its configuration"
    };
    let (used, kept) = match (newest, named) {
        (Some(newest), Named::Static(kept)) => (newest, Some(kept)),
        (Some(newest), Named::Gone(file)) => {
            let seen = format!("the kubeconfig names {}, which is not there", file.display());
            let remedy = format!("let it name {}: the kubelet does not start again without", newest.place);
            return Finding::degraded(CLIENT, seen, remedy).about(file.display().to_string());
        }
        (_, Named::Current(used) | Named::Static(used)) => (used, None),
        (None, Named::Gone(file)) => {
            let seen = format!("the kubeconfig names {}, which is not there", file.display());
            return Finding::failed(
                CLIENT,
                seen,
                "join the cluster again: kubeadm token create --print-join-command, on a control plane host",
            )
            .about(file.display().to_string());
        }
    };
    let Placed { place, leaf } = &used;
    if let Some(finding) = ended(CLIENT, place, leaf, host, renew).or_else(|| names(place, leaf, host)) {
        return finding;
    }
    if let Some(finding) = ending(CLIENT, place, leaf, host, rotating, renew) {
        return finding;
    }
    // The kubelet starts with what the kubeconfig names, and then takes what it rotated.
    if let Some(kept) = kept
        && (kept.leaf.not_after <= host.now + warning(&kept.leaf, host, false))
    {
        let seen = format!(
            "the kubeconfig holds a certificate that nobody renews ({}, until {}), beside the rotated {place}: after that the kubelet does not start",
            kept.place,
            when(kept.leaf.not_after)
        );
        return Finding::degraded(CLIENT, seen, format!("let client-certificate and client-key of the kubeconfig name {place}"))
            .about(kept.place);
    }
    let by = if rotating { "renewed by the kubelet" } else { "not renewed by the kubelet" };
    Finding::ok(CLIENT, format!("{place}: {}, until {}, {by}", leaf.common_name, when(leaf.not_after))).about(place)
}

/// Whom the API server takes the holder for.
fn names(place: &str, leaf: &Leaf, host: &Host) -> Option<Finding> {
    let (name, groups) = (&leaf.common_name, &leaf.organizations);
    let rejoin = "join the cluster again under the right name, or start the kubelet with the --hostname-override that the certificate has";
    let finding = match (name.strip_prefix("system:node:"), &host.node) {
        (Some(node), Some(own)) if node != own => {
            Finding::failed(CLIENT, format!("{place} is for node '{node}', and this one is '{own}': the API server refuses it"), rejoin)
        }
        (Some(_), _) if !groups.iter().any(|g| g == "system:nodes") => {
            let remedy = "issue it with O=system:nodes";
            Finding::failed(CLIENT, format!("{place} is for '{name}' in '{}', not in system:nodes", groups.join("', '")), remedy)
        }
        // Some clusters give kubelets rights under other names.
        (None, _) if !groups.iter().any(|g| g == "system:nodes" || g == "system:masters") => {
            let remedy = "issue it for CN=system:node:<node>, O=system:nodes";
            Finding::degraded(
                CLIENT,
                format!("{place} is for '{name}', not for system:node:<node>: it needs rules of its own in the cluster"),
                remedy,
            )
        }
        _ => return None,
    };
    Some(finding.about(place))
}

async fn serving(kubelet: &dyn Kubelet, setup: &Setup, config: &Config, host: &Host) -> Result<Finding, Finding> {
    let told = setup.flag("tls-cert-file").map(PathBuf::from).or_else(|| config.tls_cert_file.clone());
    let bootstrap = setup.switch("rotate-server-certificates").or(config.server_tls_bootstrap).unwrap_or(false);
    let (path, kind) = match told.filter(|p| !p.as_os_str().is_empty()) {
        Some(path) => (Path::new("/").join(path), Kind::Told),
        None if bootstrap => (setup.pki.join("kubelet-server-current.pem"), Kind::Rotated),
        None => (setup.pki.join("kubelet.crt"), Kind::Own),
    };
    let place = path.display().to_string();
    Ok(match (placed(kubelet, SERVING, &path).await?, kind) {
        (Some(placed), kind) => judge_serving(&placed, kind, host),
        (None, Kind::Told) => Finding::failed(
            SERVING,
            format!("{place} (tlsCertFile) is not there: the kubelet does not start"),
            format!("put it back: {place}"),
        )
        .about(place),
        (None, Kind::Rotated) => {
            let seen = format!("{place} is not there: nobody has approved the kubelet's request, and it serves nothing over TLS");
            Finding::degraded(SERVING, seen, "kubectl get csr; kubectl certificate approve <name>").about(place)
        }
        (None, Kind::Own) => {
            Finding::not_applicable(SERVING, format!("the kubelet has not made its own certificate yet ({place})")).about(place)
        }
    })
}

/// Where a serving certificate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `tlsCertFile`
    Told,
    /// Requested from the cluster, and renewed.
    Rotated,
    /// Made by the kubelet itself: nobody can check it, nobody does.
    Own,
}

fn judge_serving(placed: &Placed, kind: Kind, host: &Host) -> Finding {
    let Placed { place, leaf } = placed;
    if kind == Kind::Own {
        // It is never renewed, and clients that would mind its end do not trust it from the first day.
        return Finding::ok(
            SERVING,
            format!("{place}: made by the kubelet itself; nobody checks it, nor when it ends ({})", when(leaf.not_after)),
        )
        .about(place);
    }
    let renew = match kind {
        Kind::Rotated => "the kubelet could not renew it: kubectl get csr; kubectl certificate approve <name>",
        _ => "renew it, then restart the kubelet",
    };
    if let Some(finding) = ended(SERVING, place, leaf, host, renew) {
        return finding;
    }
    let by_name = host.node.as_ref().is_some_and(|node| leaf.covers(node));
    let by_address = leaf.addresses.iter().any(|a| host.addresses.contains(a));
    // A host whose name is not known is not told that the name is missing.
    let missed = match (leaf.addresses.is_empty(), by_name, by_address, &host.node) {
        (false, _, false, _) if !host.addresses.is_empty() => Some("none of this host's addresses".to_owned()),
        (true, false, false, Some(node)) => Some(format!("not this host's name '{node}'")),
        _ => None,
    };
    if let Some(missed) = missed {
        let has = leaf.names.iter().cloned().chain(leaf.addresses.iter().map(IpAddr::to_string)).collect::<Vec<_>>().join(", ");
        let remedy = match kind {
            Kind::Rotated => format!("after a change of address or name: rm {place}; restart the kubelet; kubectl get csr"),
            _ => "issue it for the host's name and addresses".to_owned(),
        };
        return Finding::degraded(SERVING, format!("{place} has {missed}; it is for {has}"), remedy).about(place);
    }
    ending(SERVING, place, leaf, host, kind == Kind::Rotated, renew)
        .unwrap_or_else(|| Finding::ok(SERVING, format!("{place}: until {}", when(leaf.not_after))).about(place))
}

/// A certificate that is not valid now.
fn ended(id: &'static str, place: &str, leaf: &Leaf, host: &Host, renew: &str) -> Option<Finding> {
    let finding = if leaf.not_after <= host.now {
        Finding::failed(id, format!("{place} has expired at {}", when(leaf.not_after)), renew)
    } else if leaf.not_before > host.now + SKEW {
        let seen = format!("{place} is valid only from {} on: this host's clock is behind, or the issuer's ahead", when(leaf.not_before));
        Finding::failed(id, seen, "set the clock: chronyc makestep (timedatectl tells whether it is synchronised)")
    } else {
        return None;
    };
    Some(finding.about(place))
}

/// A certificate that ends soon.
fn ending(id: &'static str, place: &str, leaf: &Leaf, host: &Host, rotating: bool, renew: &str) -> Option<Finding> {
    let soon = leaf.not_after <= host.now + warning(leaf, host, rotating);
    soon.then(|| Finding::degraded(id, format!("{place} expires at {}", when(leaf.not_after)), renew).about(place))
}

/// How long before its end a certificate is told. Those that last for days only are renewed late in their life, and kubelets renew theirs with
/// 10 to 30 % of it left.
fn warning(leaf: &Leaf, host: &Host, rotating: bool) -> Duration {
    let life = leaf.not_after.duration_since(leaf.not_before).unwrap_or_default();
    host.warning.min(life / if rotating { 10 } else { 4 })
}
