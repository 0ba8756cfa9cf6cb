//! Undoing a change: one way for the agent, the timer, and whoever asks. It may end at any point and be begun again: each part looks what is
//! left to be done.

use std::{collections::BTreeSet, time::Duration};

use super::{
    checkpoint::{self, Checkpoint, Phase, unix_millis},
    definition::{Interface, Kind},
    descent::descent,
    own_file::{OwnFile, in_order, lower},
    stack::is_guest_port,
    verify,
};
use crate::{
    crash_point,
    error::Error,
    host::net::{Action, Kernel, KernelLink, Network, Step},
};

/// How long ifupdown2 may take to bring back what was there; what hangs is then done by netlink.
const STEPS: Duration = Duration::from_secs(40);
/// The kernel is asked so often, and so long, until it is as it was: links come and go, addresses settle.
pub(super) const LOOKS: u32 = 40;
pub(super) const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// Who undoes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// The agent.
    Agent,
    /// systemd's timer.
    Timer,
    /// The boot unit.
    Boot,
    /// The removal of the package.
    Removal,
}

impl By {
    /// As it stands in the checkpoint.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Timer => "timer",
            Self::Boot => "boot",
            Self::Removal => "removal",
        }
    }
}

/// Undoes a change that is unfinished; whoever calls holds the lock. Returns what people should know. The checkpoint afterwards tells
/// `RolledBack`, or `RollbackFailed`.
pub(super) async fn undo(net: &dyn Network, change: &mut Checkpoint, by: By, why: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    change.phase = Phase::RollingBack;
    if change.detail.is_empty() {
        why.clone_into(&mut change.detail);
    }
    by.as_str().clone_into(&mut change.undone_by);
    // A disk that takes nothing must not keep the host from being restored: what is done here can be done again.
    if let Err(error) = checkpoint::save(net, change).await {
        warnings.push(format!("that the change is being undone could not be written down: {error}"));
    }
    crash_point!("network.undo_begun");
    if let Err(error) = net.stop_steps().await {
        warnings.push(format!("what ran for the change may still run: {error}"));
    }
    let file = restore_file(net, change, &mut warnings).await;
    crash_point!("network.undo_file_restored");
    let mut left: Vec<String> = file.err().map(|error| error.to_string()).into_iter().collect();
    // Whoever manages the host from afar needs the links as they were, whatever became of the file. After a reboot without the boot unit the
    // new file may have brought links up that the change itself never came to.
    let rebooted = net.boot().is_ok_and(|boot| boot.id != change.boot);
    if change.touched || rebooted {
        left.extend(restore_links(net, change, &mut warnings).await);
    }
    crash_point!("network.undo_steps_run");
    if left.is_empty() {
        change.phase = Phase::RolledBack;
    } else {
        change.phase = Phase::RollbackFailed;
        change.detail = format!("{}; it could not be undone: {}", change.detail, left.join("; "));
    }
    match checkpoint::save(net, change).await {
        Ok(()) => {
            quiet(net, &mut warnings).await;
        }
        // The timer stays armed and comes back to it.
        Err(error) => warnings.push(format!("that the change was undone could not be written down: {error}")),
    }
    crash_point!("network.undone");
    warnings
}

/// Ends what a change needed while it was unfinished.
pub(super) async fn quiet(net: &dyn Network, warnings: &mut Vec<String>) {
    if let Err(error) = net.forget_old_file().await {
        warnings.push(format!("the former file is left: {error}"));
    }
    if let Err(error) = net.disarm().await {
        warnings.push(format!("the timer goes on, and will find nothing to do: {error}"));
    }
}

/// Gives the own file its old text, whatever it holds. What somebody else wrote into it is kept.
pub(super) async fn restore_file(net: &dyn Network, change: &Checkpoint, warnings: &mut Vec<String>) -> Result<(), Error> {
    let own = net.own_file().await?;
    if own == change.plan.old_text {
        return Ok(());
    }
    if own != change.plan.new_text {
        let name = format!("edited-{}", unix_millis());
        let kept = net.keep(&name, own.as_deref().unwrap_or_default().as_bytes()).await;
        warnings.push(match kept {
            Ok(()) => format!("somebody edited the agent's own file during the change; that text is kept as {name} in the agent's state"),
            Err(error) => format!("somebody edited the agent's own file during the change, and that text could not be kept: {error}"),
        });
    }
    net.write_own_file(change.plan.old_text.as_deref()).await
}

/// Brings the links back. Returns what is not as it was.
async fn restore_links(net: &dyn Network, change: &Checkpoint, warnings: &mut Vec<String>) -> Vec<String> {
    let mut said = Vec::new();
    for attempt in 0..2 {
        let now = match net.kernel().await {
            Ok(now) => now,
            Err(error) => return vec![error.to_string()],
        };
        if !differs(change, &now).is_empty() {
            said.clear();
            // The first time what was changed is changed back in place; if that was not enough, it is made anew.
            for (steps, text) in backwards(change, &now, attempt > 0) {
                if let Err(error) = net.run_steps(&steps, text.as_deref(), STEPS).await {
                    tracing::warn!(%error, "while a change is undone");
                    said.push(error.to_string());
                    // What hangs must not hold the next one up.
                    let _ = net.stop_steps().await;
                }
            }
            for guest in plug_guests(net, &change.before).await {
                tracing::info!(operation = change.operation, guest, "a guest's port was put back on its bridge");
            }
            for name in made(change) {
                if let Err(error) = net.delete_link(&name).await {
                    said.push(format!("'{name}' is left: {error}"));
                }
            }
        }
        if let Ok(left) = look(net, |now| differs(change, now)).await
            && left.is_empty()
        {
            break;
        }
    }
    let now = match net.kernel().await {
        Ok(now) => now,
        Err(error) => return vec![error.to_string()],
    };
    for port in without_ipv6(change, &now) {
        if let Err(error) = net.enable_ipv6(port).await {
            warnings.push(format!("IPv6 stays off on '{port}', where it was on: {error}"));
        }
    }
    let left = differs(change, &now);
    let others: Vec<String> =
        verify::restored(&change.plan, &change.before, &now).into_iter().filter(|other| !left.contains(other)).collect();
    if !others.is_empty() {
        warnings.push(format!("somebody else changed the network meanwhile: {}", others.join("; ")));
    }
    if left.is_empty() { left } else { left.into_iter().chain(said).collect() }
}

/// Ports of the change's bridges on which IPv6 was on, and is off: ifupdown2 turns it off on ports, and a bridge that had to be removed by
/// netlink leaves it so.
fn without_ipv6<'a>(change: &'a Checkpoint, now: &'a Kernel) -> impl Iterator<Item = &'a str> {
    let off = |kernel: &Kernel, name: &str| kernel.link(name).and_then(|link| link.ipv6_disabled);
    let ports = change.plan.wanted.iter().filter(|i| matches!(i.kind, Kind::Bridge { .. })).flat_map(lower).map(String::as_str);
    ports.filter(move |port| off(&change.before, port) == Some(false) && off(now, port) == Some(true))
}

/// What is not as it was, of all that the change could have touched: its interfaces, what they stand on, what stands on them, and the default
/// routes. Somebody else's link that came or went meanwhile is no reason to call the host broken.
fn differs(change: &Checkpoint, now: &Kernel) -> Vec<String> {
    let plan = &change.plan;
    let old = OwnFile::parse(plan.old_text.as_deref()).unwrap_or_default();
    let of_plan = plan.wanted.iter().map(|i| &i.name).chain(&plan.gone).chain(plan.steps.iter().map(|s| &s.interface));
    let ours: BTreeSet<&str> = of_plan.map(String::as_str).collect();
    let declared = plan.wanted.iter().chain(old.interfaces().map(|(_, i)| i).filter(|i| ours.contains(i.name.as_str())));
    let mut near: BTreeSet<&str> = declared.flat_map(lower).map(String::as_str).collect();
    near.extend(&ours);
    let on_ours = |name: &Option<String>| name.as_deref().is_some_and(|name| ours.contains(name));
    near.extend(change.before.links.iter().filter(|l| on_ours(&l.master) || on_ours(&l.parent)).map(|l| l.name.as_str()));
    near.extend(change.before.default_routes().map(|r| r.link.as_str()));
    let only = |kernel: &Kernel| Kernel {
        links: kernel.links.iter().filter(|l| near.contains(l.name.as_str())).cloned().collect(),
        // A default route that came meanwhile, such as one that a router advertised, is not what the change left.
        routes: kernel.routes.iter().filter(|r| change.before.routes.contains(r) || ours.contains(r.link.as_str())).cloned().collect(),
    };
    verify::restored(plan, &only(&change.before), &only(now))
}

/// Looks at the kernel until nothing differs, no longer than patience lasts. Returns what differs at the end.
pub(super) async fn look(net: &dyn Network, differs: impl Fn(&Kernel) -> Vec<String>) -> Result<Vec<String>, Error> {
    let mut left = differs(&net.kernel().await?);
    for _ in 0..LOOKS {
        if left.is_empty() {
            break;
        }
        tokio::time::sleep(LOOK_PAUSE).await;
        left = differs(&net.kernel().await?);
    }
    Ok(left)
}

/// Puts guests' ports back on their bridges that ifupdown2 took off. Returns which.
pub(super) async fn plug_guests(net: &dyn Network, before: &Kernel) -> Vec<String> {
    let Ok(now) = net.kernel().await else { return Vec::new() };
    let mut plugged = Vec::new();
    for was in before.links.iter().filter(|l| is_guest_port(&l.name)) {
        // The same link, not that of a guest that was stopped and started; its bridge is there, and it is on none.
        let lost = now.link(&was.name).is_some_and(|is| is.index == was.index && is.master.is_none());
        let Some(bridge) = was.master.as_deref().filter(|bridge| lost && now.link(bridge).is_some_and(|b| b.kind == "bridge")) else {
            continue;
        };
        match net.plug(was, bridge).await {
            Ok(()) => plugged.push(was.name.clone()),
            // Looking at the kernel tells what is not as it was.
            Err(error) => tracing::warn!(port = was.name, bridge, %error, "a guest's port is off its bridge"),
        }
    }
    plugged
}

/// Links that the change made: there was none of that name before.
fn made(change: &Checkpoint) -> Vec<String> {
    let names = change.plan.wanted.iter().map(|i| &i.name);
    names.filter(|name| change.before.link(name).is_none()).cloned().collect()
}

/// Whether a link is as it was, as far as ifupdown2 could change it.
fn same(before: &Kernel, now: &Kernel, name: &str) -> bool {
    let ports = |kernel: &Kernel| -> BTreeSet<String> {
        kernel.links.iter().filter(|l| l.master.as_deref() == Some(name)).map(|l| l.name.clone()).collect()
    };
    let parts = |l: &KernelLink| {
        (l.kind.clone(), l.up, l.mtu, l.master.clone(), l.parent.clone(), l.vlan, l.vlan_aware, l.vlans.clone(), l.addresses.clone())
    };
    before.link(name).map(parts) == now.link(name).map(parts) && ports(before) == ports(now)
}

/// Steps, and the text that declares their interfaces; `None`: the live files.
type Call = (Vec<Step>, Option<String>);

/// The steps of a change backwards: what it made goes; what it changed or removed comes back. What is as it was is left alone. `anew`: what
/// could be changed in place is made anew.
fn backwards(change: &Checkpoint, now: &Kernel, anew: bool) -> Vec<Call> {
    let (before, plan) = (&change.before, &change.plan);
    let there = |name: &str| now.link(name).is_some();
    let was = |name: &str| before.link(name).is_some();
    // What stands on others goes first, and comes back last. The old file is the agent's own text; what cannot be read has no order.
    let old = OwnFile::parse(plan.old_text.as_deref()).unwrap_or_default();
    let old: Vec<Interface> = old.networks.into_iter().flat_map(|n| n.interfaces).collect();
    let mut order: Vec<&str> = in_order(&old).into_iter().map(|i| i.name.as_str()).collect();
    for step in plan.steps.iter().rev() {
        if !order.contains(&step.interface.as_str()) {
            order.push(&step.interface);
        }
    }
    let made = in_order(&plan.wanted).into_iter().rev().map(|i| i.name.as_str()).filter(|n| there(n) && !was(n));
    let back: Vec<&str> = order.into_iter().filter(|n| was(n) && !same(before, now, n)).collect();
    // ifupdown2 changes neither a link's kind nor what it stands on.
    let shape = |kernel: &Kernel, name: &str| kernel.link(name).map(|l| (l.kind.clone(), l.parent.clone(), l.vlan));
    let again = |name: &str| there(name) && (anew || shape(before, name) != shape(now, name));
    let going = back.iter().copied().rev().filter(|n| again(n));
    let mut calls = Vec::new();
    for (text, names) in [(&plan.new_text, made.collect::<Vec<_>>()), (&plan.old_text, going.collect())] {
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        // Without a text that can be read netlink does it.
        if let Ok(descent) = descent(text.as_deref(), &names, now) {
            calls.push((descent.steps, Some(descent.text)));
        }
    }
    let action = |name: &str| if there(name) && !again(name) { Action::Change } else { Action::Up };
    calls.push((back.iter().map(|n| Step { action: action(n), interface: (*n).to_owned() }).collect(), None));
    calls.retain(|(steps, _)| !steps.is_empty());
    calls
}
