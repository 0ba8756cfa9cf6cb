//! CRI switched off.

use super::super::{
    Cri, Fault, Finding, Mend, Scene, State,
    declared::{CRI, root_place},
};

const ID: &str = "containerd.cri-disabled";

/// Entries of `disabled_plugins` that take CRI away, with their files.
pub(in super::super) fn entries(scene: &Scene<'_>) -> Vec<(usize, String)> {
    let Some(declared) = &scene.declared else { return Vec::new() };
    declared.plugins_list("disabled_plugins").into_iter().filter(|(_, entry)| declared.disables_cri(entry)).collect()
}

pub(super) fn disabled(scene: &Scene<'_>) -> Finding {
    let entries = entries(scene);
    let unneeded = scene.unneeded();
    if let (Some(why), Some((_, entry))) = (&unneeded, entries.first()) {
        return Finding::not_applicable(ID, format!("CRI is switched off (disabled_plugins has {entry:?}), and {why}"));
    }
    let up = match &scene.facts.cri {
        Cri::Up(_) => Some(true),
        Cri::NotLoaded => Some(false),
        Cri::Down(_) | Cri::Unclear(_) => None,
    };
    if let Some((file, entry)) = entries.first() {
        let place = root_place(scene.texts, *file, "disabled_plugins");
        let fault = Fault::failed(
            format!("disabled_plugins has {entry:?}: containerd has no CRI"),
            format!("take {entry:?} out of disabled_plugins (Docker's package of containerd ships it so)"),
        );
        let fault = fault.at(place).mendable();
        let (state, start) = if up == Some(true) {
            (State::Degraded, "not yet in force, but from containerd's next start on: ")
        } else {
            (State::Failed, "")
        };
        return fault.finding(ID, state, format!("{start}{}", fault.placed(scene)), scene);
    }
    if scene.declared.is_none() && up != Some(true) {
        return Finding::unknown(ID, scene.unread());
    }
    // A plugin that was switched off is not in the list at all; one that failed is, with its error.
    let listed = scene.facts.plugins.as_ref().is_some_and(|p| p.iter().any(|p| p.kind == "io.containerd.grpc.v1" && p.id == "cri"));
    match (up, unneeded) {
        (Some(false), Some(why)) => Finding::not_applicable(ID, why),
        (Some(false), None) if scene.facts.plugins.is_some() && !listed => {
            let unit = &scene.facts.unit;
            let seen = format!("containerd runs without {CRI}, which its files no longer switch off");
            Finding::failed(ID, seen, format!("systemctl restart {unit}")).about(unit.clone()).mended_by(Mend::RestartUnit(unit.clone()))
        }
        (Some(false), None) => Finding::ok(ID, "CRI is not switched off, but it could not be loaded: see containerd.plugins"),
        _ => Finding::ok(ID, "CRI is not switched off"),
    }
}
