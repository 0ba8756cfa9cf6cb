//! The socket: where containerd listens, where the kubelet and the agent ask.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::super::{Cri, Fault, Finding, Scene, Verdict, view::View};

const ID: &str = "containerd.socket-path";

/// `/var/run` is `/run`, and a scheme is no part of the path.
fn plain(path: &str) -> String {
    let path = path.strip_prefix("unix://").or_else(|| path.strip_prefix("unix:")).unwrap_or(path);
    let path: PathBuf = Path::new(path).components().collect();
    let path = path.to_string_lossy();
    path.strip_prefix("/var/run/").map_or_else(|| path.to_string(), |rest| format!("/run/{rest}"))
}

/// Paths that differ, and may be links to the same.
pub(in super::super) fn to_compare(scene: &Scene<'_>) -> BTreeSet<PathBuf> {
    let listens = [&scene.now, &scene.next].into_iter().flatten().filter_map(|v| v.endpoint.as_deref());
    let kubelet = scene.facts.kubelet.as_ref().and_then(|k| k.runtime_endpoint.as_deref());
    let asks = scene.facts.socket.to_string_lossy();
    let paths: BTreeSet<PathBuf> = listens.chain(kubelet).chain([&*asks]).map(|p| PathBuf::from(plain(p))).collect();
    if paths.len() < 2 { BTreeSet::new() } else { paths.into_iter().filter(|p| p.is_absolute()).collect() }
}

pub(super) fn path(scene: &Scene<'_>) -> Finding {
    if let Some(why) = scene.unneeded() {
        return Finding::not_applicable(ID, why);
    }
    scene.told(ID, |view| judge(scene, view))
}

fn judge(scene: &Scene<'_>, view: &View) -> Verdict {
    let real = |path: &str| {
        let path = plain(path);
        scene.facts.links.get(Path::new(&path)).map_or_else(|| path.clone(), |real| plain(&real.to_string_lossy()))
    };
    let listens = view.endpoint.as_deref().unwrap_or_default();
    let place = || scene.declared.as_ref().and_then(|d| d.endpoint_place());
    let asks = scene.facts.socket.to_string_lossy();
    if let Some(kubelet) = scene.facts.kubelet.as_ref().and_then(|k| k.runtime_endpoint.as_deref()).filter(|k| real(k) != real(listens)) {
        // The daemon that the agent asks may be another than the kubelet's.
        let seen = format!("containerd listens at {listens}, the kubelet asks {kubelet}");
        let remedy = format!(
            "set containerRuntimeEndpoint of the kubelet to unix://{listens}, or [grpc] address of containerd to {kubelet}; if the kubelet has a containerd of its own, set containerd_socket of the agent's [health] to {kubelet}"
        );
        return Err(Fault::failed(seen, remedy).at(place()));
    }
    if matches!(scene.facts.cri, Cri::Down(_)) && real(&asks) != real(listens) {
        let seen = format!("containerd listens at {listens}, the agent asks {asks}, where nobody answers");
        let remedy = format!("set containerd_socket = {listens:?} in [health] of the agent");
        return Err(Fault::failed(seen, remedy).at(place()));
    }
    Ok(format!("containerd listens at {listens}, where it is asked"))
}
