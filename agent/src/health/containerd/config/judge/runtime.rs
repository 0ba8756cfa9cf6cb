//! The default runtime: declared, and with a type.

use super::super::{Declared, Fault, Finding, Scene, Verdict, declared::Key, text::Place, view::View};

const ID: &str = "containerd.runtime-type";

/// The type for a runtime without one, where its name or its options leave no doubt.
pub(in super::super) fn type_for(name: &str, runc_options: bool) -> Option<&'static str> {
    let runc = ["runc", "crun", "youki"].contains(&name) || name.starts_with("nvidia") || runc_options;
    match name {
        _ if runc => Some("io.containerd.runc.v2"),
        "runsc" | "gvisor" => Some("io.containerd.runsc.v1"),
        "kata" => Some("io.containerd.kata.v2"),
        _ => None,
    }
}

fn place(declared: Option<&Declared<'_>>, name: &str) -> Option<Place> {
    let declared = declared?;
    declared.place(Key::RuntimeType(name)).or_else(|| declared.place(Key::Runtime(name)))
}

fn judge(scene: &Scene<'_>, view: &View) -> Verdict {
    let (name, declared) = (view.default_runtime.as_str(), scene.declared.as_ref());
    let naming = |declared: &Declared<'_>| declared.place(Key::DefaultRuntime);
    if name.is_empty() {
        let fault = Fault::failed("default_runtime_name is empty, with which CRI does not load", "set default_runtime_name = \"runc\"");
        return Err(fault.at(declared.and_then(naming)).mendable());
    }
    let Some(runtime) = view.default() else {
        let known = view.runtimes.keys().cloned().collect::<Vec<_>>().join(", ");
        let known = if known.is_empty() { "none".to_owned() } else { known };
        let seen = format!("the default runtime {name:?} is not declared (declared: {known}), with which CRI does not load");
        let place = declared.and_then(|d| naming(d).or_else(|| d.place(Key::Runtimes)));
        let remedy = format!("declare a runtime {name:?} with its runtime_type, or set default_runtime_name to one that is declared");
        return Err(Fault::failed(seen, remedy).at(place).mendable());
    };
    if runtime.kind.is_empty() {
        let seen = format!("the default runtime {name:?} has no runtime_type: each pod fails with `container.Runtime.Name must be set`");
        let kind = type_for(name, runtime.runc_options);
        let remedy = format!("set runtime_type = {:?} for the runtime {name:?}", kind.unwrap_or("io.containerd.runc.v2"));
        let fault = Fault::failed(seen, remedy).at(place(declared, name));
        return Err(if kind.is_some() { fault.mendable() } else { fault });
    }
    let untyped: Vec<&String> = view.runtimes.iter().filter(|(_, r)| r.kind.is_empty()).map(|(name, _)| name).collect();
    let Some(first) = untyped.first() else {
        return Ok(format!("the default runtime is {name:?}, {}", runtime.kind));
    };
    let names = untyped.iter().map(|n| format!("{n:?}")).collect::<Vec<_>>().join(", ");
    let kinds: Vec<Option<&str>> = untyped.iter().map(|n| type_for(n, view.runtimes[*n].runc_options)).collect();
    let seen =
        format!("without runtime_type: {names}; pods of a RuntimeClass with that handler fail with `container.Runtime.Name must be set`");
    let remedy = format!("set runtime_type, such as {:?}, for {names}", kinds[0].unwrap_or("io.containerd.runc.v2"));
    let fault = Fault::degraded(seen, remedy).at(place(declared, first));
    Err(if kinds.iter().all(Option::is_some) { fault.mendable() } else { fault })
}

pub(super) fn runtime_type(scene: &Scene<'_>) -> Finding {
    if let Some(why) = scene.unneeded() {
        return Finding::not_applicable(ID, why);
    }
    scene.told(ID, |view| judge(scene, view))
}
