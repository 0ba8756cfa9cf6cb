//! Who manages cgroups: the keys that say so, and the kubelet's word on it.

use super::super::{
    super::super::kubelet::facts::CgroupDriver,
    Fault, Finding, Generation, Scene, Verdict,
    declared::Key,
    view::{Cgroup, RUNTIME_V1, View},
};

const KEYS: &str = "containerd.cgroup-keys";
const DRIVER: &str = "containerd.cgroup-driver";

pub(super) fn keys(scene: &Scene<'_>) -> Finding {
    if let Some(why) = scene.unneeded() {
        return Finding::not_applicable(KEYS, why);
    }
    scene.told(KEYS, |view| judge_keys(scene, view))
}

fn judge_keys(scene: &Scene<'_>, view: &View) -> Verdict {
    let well = || Ok("no old key `systemd_cgroup = true`".to_owned());
    if !view.systemd_cgroup {
        return well();
    }
    let (name, new) = (view.default_runtime.as_str(), view.default().map(|r| r.cgroup.on()).unwrap_or_default());
    let place = scene.declared.as_ref().and_then(|d| d.place(Key::SystemdCgroup));
    let remedy = format!("remove the plugin's `systemd_cgroup`, and set `SystemdCgroup` in the options of the runtime {name:?} instead");
    match scene.generation {
        Generation::One { .. } if view.default().is_some_and(|r| r.kind == RUNTIME_V1) => {
            Ok(format!("`systemd_cgroup = true` fits the runtime {name:?} of type {RUNTIME_V1}"))
        }
        Generation::One { .. } => {
            let both = if new {
                format!("`systemd_cgroup = true` beside `SystemdCgroup = true` of the runtime {name:?}")
            } else {
                "`systemd_cgroup = true`".to_owned()
            };
            let seen = format!("{both}: that key only works for runtimes of type {RUNTIME_V1}, and CRI does not load with it");
            Err(Fault::failed(seen, remedy).at(place).mendable())
        }
        // Ignored, and said where it counts: nothing is lost.
        Generation::Two { .. } if new => well(),
        Generation::Two { .. } => {
            let seen = format!(
                "`systemd_cgroup = true` is a key of 1.x, which {} ignores; the runtime {name:?} does not have `SystemdCgroup = true`",
                scene.generation
            );
            Err(Fault::degraded(seen, remedy).at(place).mendable())
        }
    }
}

pub(super) fn driver(scene: &Scene<'_>) -> Finding {
    if let Some(why) = scene.unneeded() {
        return Finding::not_applicable(DRIVER, why);
    }
    scene.told(DRIVER, |view| judge_driver(scene, view))
}

/// What a value of the runtime's option means.
fn manager(systemd: bool) -> &'static str {
    if systemd { "systemd" } else { "cgroupfs" }
}

fn judge_driver(scene: &Scene<'_>, view: &View) -> Verdict {
    let place = |name: &str| {
        let declared = scene.declared.as_ref()?;
        let old = || declared.place(Key::OldOption("default_runtime")).or_else(|| declared.place(Key::OldRuntime("default_runtime")));
        let set = declared.place(Key::Option(name, "SystemdCgroup")).or_else(|| declared.place(Key::Runtime(name)));
        set.or_else(|| if name == "default" { old() } else { None })
    };
    for (name, runtime) in &view.runtimes {
        if let Cgroup::Bad(kind) = runtime.cgroup {
            let seen = format!("SystemdCgroup of the runtime {name:?} is a {kind}, no boolean: pods with that runtime fail");
            let fault = Fault::failed(seen, "write `SystemdCgroup = true` or `false`, without quotes").at(place(name));
            return Err(if wanted_driver(scene).is_some() { fault.mendable() } else { fault });
        }
    }
    let Some(driver) = wanted_driver(scene) else {
        return Ok(match scene.generation {
            Generation::Two { .. } => {
                let on = view.default().is_some_and(|r| r.cgroup.on());
                format!("cgroups are managed by {}, which {} tells the kubelet (from 1.31 on)", manager(on), scene.generation)
            }
            Generation::One { .. } => "who manages cgroups for the kubelet is not known".to_owned(),
        });
    };
    let wanted = driver == CgroupDriver::Systemd;
    let has = |name: &str| {
        let runtime = view.runtimes.get(name)?;
        if runtime.kind == RUNTIME_V1 { Some(view.systemd_cgroup) } else { runtime.is_runc().then(|| runtime.cgroup.on()) }
    };
    let name = view.default_runtime.as_str();
    if let Some(has) = has(name).filter(|has| *has != wanted) {
        let seen =
            format!("cgroups are managed by {} for the kubelet, by {} for the default runtime {name:?}", manager(wanted), manager(has));
        let remedy = format!(
            "set `SystemdCgroup = {wanted}` in the options of the runtime {name:?} and restart containerd and the kubelet, or change cgroupDriver of the kubelet"
        );
        // runc refuses a cgroup path that is no slice when systemd is to manage it; the other way round pods run outside the kubelet's limits.
        let fault = if has {
            Fault::failed(format!("{seen}: pods do not start"), remedy)
        } else {
            Fault::degraded(format!("{seen}: limits of pods do not hold"), remedy)
        };
        return Err(fault.at(place(name)).mendable());
    }
    // One that is only built in is nobody's wish.
    let mut others = view.runtimes.keys().filter(|other| *other != name && has(other).is_some_and(|has| has != wanted));
    if let Some(other) = others.find(|other| place(other).is_some()) {
        let seen = format!("cgroups are managed by {} for the kubelet, by {} for the runtime {other:?}", manager(wanted), manager(!wanted));
        let remedy = format!("set `SystemdCgroup = {wanted}` in the options of the runtime {other:?} and restart containerd");
        return Err(Fault::degraded(seen, remedy).at(place(other)).mendable());
    }
    match has(name) {
        Some(_) => Ok(format!("both the kubelet and the default runtime {name:?} leave cgroups to {}", manager(wanted))),
        None => Ok(format!("the default runtime {name:?} manages cgroups its own way")),
    }
}

/// What the kubelet has, where it is not told by containerd itself: 2.x answers CRI `RuntimeConfig`, which kubelets ask from 1.31 on and go by.
pub(in super::super) fn wanted_driver(scene: &Scene<'_>) -> Option<CgroupDriver> {
    if matches!(scene.generation, Generation::Two { .. }) {
        return None;
    }
    scene.facts.kubelet.as_ref().and_then(|k| k.cgroup_driver)
}
