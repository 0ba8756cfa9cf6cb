//! CNI: its configuration, its plugins, and what containerd makes of them.

use super::super::{Cri, Fault, Finding, Folder, Place, Scene, State, declared::Key};

const ID: &str = "containerd.cni";

/// Files that containerd takes for CNI's configuration.
fn is_config(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, end)| ["conf", "conflist", "json"].contains(&end))
}

/// What is wrong with a folder.
struct Trouble {
    seen: String,
    /// Whether it could not be read, which says nothing of what is in it.
    hidden: bool,
}

fn trouble(folder: &Folder, what: &str, counts: impl Fn(&str) -> bool) -> Option<Trouble> {
    let path = folder.path.display();
    let seen = match &folder.names {
        Err(why) => Some(format!("{path} ({what}) cannot be read: {why}")),
        Ok(None) => Some(format!("{path} ({what}) does not exist")),
        Ok(Some(names)) if names.is_empty() => Some(format!("{path} ({what}) is empty")),
        Ok(Some(names)) if !names.iter().any(|n| counts(n)) => Some(format!("{path} holds no {what}, only {}", some(names))),
        Ok(Some(_)) => None,
    };
    seen.map(|seen| Trouble { seen, hidden: folder.names.is_err() })
}

fn some(names: &[String]) -> String {
    let more = if names.len() > 3 { ", ..." } else { "" };
    format!("{}{more}", names.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", "))
}

pub(super) fn cni(scene: &Scene<'_>) -> Finding {
    if let Some(why) = scene.unneeded() {
        return Finding::not_applicable(ID, why);
    }
    let Some(view) = scene.now.as_ref().or(scene.next.as_ref()) else {
        return Finding::unknown(ID, format!("which folders CNI has is not known, and {}", scene.unread()));
    };
    let place = |key: &str| scene.declared.as_ref().and_then(|d| d.place(Key::Cni(key)));
    let (status, ready) = match &scene.facts.cri {
        Cri::Up(status) => (Some(status), status.conditions.iter().find(|c| c.kind == "NetworkReady")),
        _ => (None, None),
    };
    let tell = |state: State, seen: String, remedy: &str, place: Option<Place>| {
        Fault { state, ..Fault::failed(seen.clone(), remedy) }.at(place.clone()).finding(
            ID,
            state,
            seen + &place.map(|p| format!(" ({p})")).unwrap_or_default(),
            scene,
        )
    };
    let conf = scene
        .facts
        .cni_conf
        .as_ref()
        .filter(|f| f.path.to_str() == Some(&view.cni_conf))
        .and_then(|f| trouble(f, "CNI's configuration", is_config));
    let nameless = || Trouble { seen: "the folder of CNI's configuration has no name".to_owned(), hidden: false };
    let conf = if view.cni_conf.is_empty() { Some(nameless()) } else { conf };
    // Any of several folders will do.
    let bins: Vec<_> = scene
        .facts
        .cni_bin
        .iter()
        .filter(|f| view.cni_bin.iter().any(|b| f.path.to_str() == Some(b)))
        .map(|f| trouble(f, "CNI's plugins", |_| true))
        .collect();
    let well = bins.iter().any(Option::is_none);
    let mut bins: Vec<_> = bins.into_iter().flatten().collect();
    // The plugins may be in the one that cannot be read.
    bins.sort_by_key(|t| !t.hidden);
    let bin = bins.into_iter().next().filter(|_| !well);
    let bin_place = || place("bin_dirs").or_else(|| place("bin_dir"));
    let install = "install the CNI plugins there (package containernetworking-plugins, or the network add-on's own), or set bin_dir to where they are";
    let wait = "see why the network add-on of the cluster (Cilium, Calico, ...) has not written its configuration: `kubectl -n kube-system get pods -o wide` for its pod on this node";
    if let Some(ready) = ready.filter(|r| !r.status) {
        let said = [ready.message.as_str(), status.map_or("", |s| s.cni.as_str())];
        let said = said.into_iter().filter(|s| !s.is_empty() && *s != "OK").collect::<Vec<_>>().join("; ");
        return match (conf.map(|t| t.seen), bin.map(|t| t.seen)) {
            (Some(_), _) if view.cni_template => tell(
                State::Failed,
                format!(
                    "the kubelet has not told the node's pod addresses yet, from which CNI's configuration is made; containerd says: {said}"
                ),
                "see why the node has no podCIDR",
                place("conf_template"),
            ),
            (Some(conf), _) => tell(State::Failed, format!("{conf}; containerd says: {said}"), wait, place("conf_dir")),
            (None, Some(bin)) => tell(State::Failed, format!("{bin}; containerd says: {said}"), install, bin_place()),
            (None, None) => tell(
                State::Failed,
                format!("there is a configuration, but containerd says: {said}"),
                "correct the file that it names, or restart the network add-on's pod on this node",
                place("conf_dir"),
            ),
        };
    }
    let hidden = match (&conf, &bin) {
        (_, Some(bin)) => Some(bin).filter(|t| t.hidden),
        (conf, None) => conf.as_ref().filter(|t| t.hidden),
    };
    if let Some(Trouble { seen, .. }) = hidden {
        let remedy = "see why the agent cannot read it: `ls -l` on it, its mount, its disk".to_owned();
        return Finding { remedy, ..Finding::unknown(ID, seen.clone()) };
    }
    match (conf.map(|t| t.seen), bin.map(|t| t.seen)) {
        (_, Some(bin)) => tell(State::Failed, format!("{bin}: no pod gets a network"), install, bin_place()),
        (Some(conf), None) if ready.is_some() => tell(
            State::Degraded,
            format!("{conf}; containerd still has what it loaded before, until its next start"),
            wait,
            place("conf_dir"),
        ),
        (Some(conf), None) if view.cni_template => Finding::ok(ID, format!("{conf}; it is made from a template")),
        (Some(conf), None) => tell(State::Failed, conf, wait, place("conf_dir")),
        (None, None) => match &scene.facts.cri {
            Cri::Unclear(why) => Finding::unknown(
                ID,
                format!("{} holds CNI's configuration; whether containerd has loaded it is not known: {why}", view.cni_conf),
            ),
            _ => Finding::ok(ID, format!("{} holds CNI's configuration, {} its plugins", view.cni_conf, view.cni_bin.join(", "))),
        },
    }
}
