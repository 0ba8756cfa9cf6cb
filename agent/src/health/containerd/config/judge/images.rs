//! The sandbox image and the snapshotter.

use super::super::{Cri, Fault, Finding, Scene, State, declared::Key, view::View};

const SANDBOX: &str = "containerd.sandbox-image";
const SNAPSHOTTER: &str = "containerd.snapshotter";

pub(super) fn sandbox(scene: &Scene<'_>) -> Finding {
    if let Some(why) = scene.unneeded() {
        return Finding::not_applicable(SANDBOX, why);
    }
    let place = scene.declared.as_ref().and_then(|d| d.place(Key::SandboxImage));
    let empty = |view: &View| {
        let seen = "the name of the sandbox image is empty: no pod starts";
        match view.sandbox_image.as_deref() {
            Some("") => Err(Fault::failed(seen, "name an image, or remove the key: containerd then takes its own").at(place.clone())),
            Some(image) => Ok(format!("the sandbox image is {image}")),
            None => Ok("the sandbox image is containerd's own".to_owned()),
        }
    };
    let finding = scene.told(SANDBOX, empty);
    if finding.state != State::Ok {
        return finding;
    }
    let Some(image) = scene.now.as_ref().or(scene.next.as_ref()).and_then(|v| v.sandbox_image.clone()) else {
        return Finding::unknown(SANDBOX, "no file names the sandbox image, and which one is built in could not be asked");
    };
    let here = scene.facts.sandbox_image.as_ref().filter(|(asked, _)| *asked == image).map(|(_, here)| *here);
    match (here, &scene.facts.cri) {
        (Some(true), _) => Finding::ok(SANDBOX, format!("{image} is here")),
        (Some(false), _) => {
            let seen = format!("{image} is not here: containerd must pull it before a pod starts");
            let remedy = format!(
                "pull it once: `crictl pull {image}`, or `ctr -n k8s.io images pull {image}`; where the registry cannot be reached, import it or name another in the configuration"
            );
            let fault = Fault::degraded(seen, remedy).at(place);
            fault.finding(SANDBOX, State::Degraded, fault.placed(scene), scene)
        }
        (None, Cri::Down(why) | Cri::Unclear(why)) => Finding::unknown(SANDBOX, format!("whether {image} is here is not known: {why}")),
        (None, _) => Finding::unknown(SANDBOX, format!("whether {image} is here is not known: CRI does not answer")),
    }
}

pub(super) fn snapshotter(scene: &Scene<'_>) -> Finding {
    if let Some(why) = scene.unneeded() {
        return Finding::not_applicable(SNAPSHOTTER, why);
    }
    let Some(plugins) = &scene.facts.plugins else {
        let why = match &scene.facts.cri {
            Cri::Down(why) | Cri::Unclear(why) => why.as_str(),
            _ => "it does not list its plugins",
        };
        let name = scene.now.as_ref().or(scene.next.as_ref()).and_then(|v| v.snapshotter.clone()).unwrap_or_default();
        return Finding::unknown(SNAPSHOTTER, format!("which snapshotters containerd has is not known ({why}); {name:?} is configured"));
    };
    let ours: Vec<_> = plugins.iter().filter(|p| p.kind == "io.containerd.snapshotter.v1").collect();
    let loaded = || {
        let names: Vec<&str> = ours.iter().filter(|p| p.error.is_empty()).map(|p| p.id.as_str()).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    let trouble = |name: &str| match ours.iter().find(|p| p.id == name) {
        Some(plugin) if plugin.error.is_empty() => None,
        Some(plugin) => Some(format!("the snapshotter {name:?} could not be loaded: {}", brief(&plugin.error))),
        None => Some(format!("there is no snapshotter {name:?} (loaded: {})", loaded())),
    };
    let place = |key: Key<'_>| scene.declared.as_ref().and_then(|d| d.place(key));
    scene.told(SNAPSHOTTER, |view| {
        let name = view.snapshotter.as_deref().unwrap_or("overlayfs");
        let remedy = "bring up what it needs (its file system, its daemon), or configure one that is loaded: images and containers of the other are then not seen";
        if let Some(seen) = trouble(name) {
            return Err(Fault::failed(seen, remedy).at(place(Key::Snapshotter)));
        }
        for (runtime, own) in view.runtimes.iter().map(|(n, r)| (n, &r.snapshotter)).filter(|(_, s)| !s.is_empty()) {
            if let Some(seen) = trouble(own) {
                let seen = format!("for the runtime {runtime:?}: {seen}");
                return Err(Fault::degraded(seen, remedy).at(place(Key::RuntimeSnapshotter(runtime))));
            }
        }
        Ok(format!("{name} is loaded"))
    })
}

/// What a plugin says, on one line.
fn brief(error: &str) -> String {
    error.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect()
}
