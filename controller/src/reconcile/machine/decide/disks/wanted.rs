//! A disk that the spec names.

use super::{LOOK_AGAIN, Pass, VolumeSight, after, entry, settling};
use crate::{
    kind::{ActionKind, DiskPhase, DiskSpec, DiskStatus, Quantity, claim},
    reconcile::{ASIDE, DiskView, RunState, machine::decide::Action, machine::decide::draft::Draft},
};
use pvelet_proto::{reason, v1};

/// Storages round sizes up, LVM to its extents of usually 4 MiB: so much more than wanted is no other size.
const ROUNDING: u64 = 128 << 20;

impl Pass<'_> {
    pub(super) fn wanted(&mut self, draft: &mut Draft<'_>, volume: &str, spec: &DiskSpec) -> Option<Action> {
        let seen = self.held(volume).filter(|d| !d.is_aside()).cloned();
        if let Some(disk) = &seen {
            take_in(draft, volume, disk, &self.vm.node);
        } else if let Some(entry) = entry(&mut draft.status, volume) {
            entry.slot = None;
            entry.phase = if entry.created && entry.requested { DiskPhase::Detached } else { DiskPhase::Pending };
        }
        match self.make(draft, volume, spec).and_then(|()| self.follow_vm(draft, volume)) {
            Ok(true) => {}
            Ok(false) => {
                self.elsewhere(draft, volume);
                return None;
            }
            Err(step) => return step,
        }
        match seen {
            Some(disk) => self.attached(draft, volume, spec, &disk),
            None => self.detached(draft, volume),
        }
    }

    /// Sees to it that the volume exists. `Err`: that is not so far yet, and what to do now.
    fn make(&mut self, draft: &mut Draft<'_>, volume: &str, spec: &DiskSpec) -> Result<(), Option<Action>> {
        let known = draft.status.disk(volume).cloned().unwrap_or_default();
        if known.created || !spec.is_made() {
            return Ok(());
        }
        if known.requested {
            let node = known.node.clone().unwrap_or_else(|| self.vm.node.clone());
            match self.look(draft, volume, &node).map_err(Some)? {
                None => return Err(None),
                Some(VolumeSight::Found(found)) => {
                    let owner = found.owner.clone().unwrap_or_default();
                    if owner != self.owner(draft, &spec.name) {
                        let text = format!("disk {}: volume {volume} exists already and is not this machine's", spec.name);
                        self.findings.hold("VolumeNotOurs", format!("{text}; look at its owner with pveletctl, then rename the disk"));
                        self.findings.until(after(self.inputs.now, LOOK_AGAIN));
                        return Err(None);
                    }
                    if let Some(entry) = entry(&mut draft.status, volume) {
                        entry.created = true;
                        entry.node = Some(node);
                        entry.storage = Some(found.storage.clone());
                    }
                    draft.forget_failures(volume);
                    return Ok(());
                }
                Some(VolumeSight::Missing) => {
                    if let Some(entry) = entry(&mut draft.status, volume) {
                        (entry.requested, entry.node) = (false, None);
                    }
                }
                Some(VolumeSight::Refused { reason, message }) => {
                    self.refused(&spec.name, &reason, &message);
                    return Err(None);
                }
            }
        }
        if let Some((reason, text)) = self.host.out_of_service() {
            self.findings.hold(reason, format!("disk {}: not made while {text}", spec.name));
            return Err(None);
        }
        let host = self.host;
        Err(self.order(draft, ActionKind::CreateDisk, host, volume))
    }

    /// Whether the volume is where the VM is: one that moved takes the volumes of shared storages along, and others only where they were
    /// moved too. `Err`: that cannot be told yet, and what to do now.
    pub(super) fn follow_vm(&mut self, draft: &mut Draft<'_>, volume: &str) -> Result<bool, Option<Action>> {
        let Some(known) = draft.status.disk(volume).cloned() else { return Ok(true) };
        if known.node.as_ref().is_none_or(|n| *n == self.vm.node) {
            return Ok(true);
        }
        let here = self.vm.node.clone();
        match self.look(draft, volume, &here).map_err(Some)? {
            None => Err(None),
            Some(VolumeSight::Found(found)) => {
                if let Some(entry) = entry(&mut draft.status, volume) {
                    entry.node = Some(here);
                    entry.storage = Some(found.storage.clone());
                }
                Ok(true)
            }
            Some(VolumeSight::Missing) => Ok(false),
            Some(VolumeSight::Refused { reason, message }) => {
                self.refused(&known.name, &reason, &message);
                Err(None)
            }
        }
    }

    fn elsewhere(&mut self, draft: &Draft<'_>, volume: &str) {
        let known = draft.status.disk(volume).cloned().unwrap_or_default();
        let storage = known.storage.as_deref().unwrap_or("its storage");
        let text = format!(
            "disk {}: volume {volume} lies on {storage} of node {}, and the VM is on {}, which does not see it; migrate the VM back, or move \
             the volume to a shared storage",
            known.name,
            known.node.unwrap_or_default(),
            self.vm.node
        );
        self.findings.hold("DiskOnOtherHost", text);
        self.findings.until(after(self.inputs.now, LOOK_AGAIN));
    }

    fn refused(&mut self, name: &str, reason: &str, message: &str) {
        let reason = crate::reconcile::machine::decide::attempt::camel_reason(reason);
        self.findings.hold(format!("Volume{reason}"), format!("disk {name}: its volume cannot be looked at: {message}"));
        self.findings.until(after(self.inputs.now, LOOK_AGAIN));
    }

    /// The owner record of a disk of this machine.
    fn owner(&self, draft: &Draft<'_>, disk: &str) -> v1::VolumeOwner {
        super::request::owner(self.inputs, &draft.tenant(), &claim(&self.inputs.machine.metadata, disk))
    }

    /// The volume exists, and the VM does not have it.
    fn detached(&mut self, draft: &mut Draft<'_>, volume: &str) -> Option<Action> {
        let known = draft.status.disk(volume).cloned().unwrap_or_default();
        if let Some(until) = settling(self.inputs, &known, ActionKind::AttachDisk) {
            self.findings.until(until);
            self.findings.hold("AttachingDisk", format!("disk {}", known.name));
            return None;
        }
        if known.attached
            && known.last == Some(ActionKind::AttachDisk)
            && draft.status.failure_with(ActionKind::AttachDisk, Some(volume)).is_none()
        {
            let node = self.vm.node.clone();
            let sight = match self.look(draft, volume, &node) {
                Ok(sight) => sight?,
                Err(action) => return Some(action),
            };
            if let VolumeSight::Found(found) = &sight
                && found.attachment.as_ref().is_some_and(|a| comes_with_next_start(a, &self.vm.uuid))
            {
                let text = format!("disk {}: attached, but the guest sees it only from the VM's next start; shut it down once", known.name);
                self.findings.problem("DiskPendingRestart", text);
                self.findings.until(after(self.inputs.now, LOOK_AGAIN));
                if let Some(entry) = entry(&mut draft.status, volume) {
                    entry.phase = DiskPhase::AttachedFromNextStart;
                }
                return None;
            }
        }
        // It was attached and somebody detached it.
        if known.attached && self.vm.ha_managed {
            let text = format!("disk {}: detached by somebody; not repaired while PVE's HA manager has the VM", known.name);
            self.findings.problem("HaManaged", text);
            return None;
        }
        if let Some((reason, text)) = self.host.out_of_service() {
            self.findings.hold(reason, format!("disk {}: not attached while {text}", known.name));
            return None;
        }
        let host = self.host;
        self.order(draft, ActionKind::AttachDisk, host, volume)
    }

    /// The VM has it: size, options, limits.
    fn attached(&mut self, draft: &mut Draft<'_>, volume: &str, spec: &DiskSpec, disk: &DiskView) -> Option<Action> {
        let known = draft.status.disk(volume).cloned().unwrap_or_default();
        let (host, problems) = (self.host, self.findings.problems.len());
        if let Some(until) = settling(self.inputs, &known, ActionKind::DetachDisk) {
            self.findings.until(until);
            self.findings.hold("AttachingDisk", format!("disk {}", known.name));
            return None;
        }
        if known.options_hash.as_ref().is_some_and(|hash| *hash != spec.options_hash()) {
            if self.vm.state == RunState::Stopped && !self.vm.ha_managed && host.out_of_service().is_none() {
                return self.order(draft, ActionKind::DetachDisk, host, volume);
            }
            let text = format!("disk {}: other options than limits count once the VM was stopped", known.name);
            self.findings.problem("DiskOptionsNotInEffect", text);
        }
        let other = spec.storage.as_ref().filter(|s| spec.is_made() && !disk.storage.is_empty() && **s != disk.storage);
        if let Some(storage) = other {
            let text = format!("disk {}: it lies on {}, not on {storage}; the controller does not move volumes", known.name, disk.storage);
            self.findings.notes.push(text);
        }
        if let Some(wanted) = spec.size {
            let real = disk.size_bytes;
            if real > wanted.0.saturating_add(ROUNDING) {
                let text = format!("disk {}: size = {wanted}: it has {} and cannot shrink; set at least that", known.name, Quantity(real));
                self.findings.problem("DiskShrinkRefused", text);
            } else if real < wanted.0 {
                match self.grow(draft, volume, wanted, &known) {
                    Ok(()) => {}
                    Err(step) => return step,
                }
            } else if let Some(entry) = entry(&mut draft.status, volume) {
                entry.grown_digest = None;
            }
        }
        if known.limits != Some(spec.wanted_limits()) {
            return self.order(draft, ActionKind::SetDiskLimits, host, volume);
        }
        if self.findings.problems.len() == problems {
            draft.forget_failures(volume);
        }
        None
    }

    /// `Ok` when it has been grown, whatever the VM's config shows.
    fn grow(&mut self, draft: &mut Draft<'_>, volume: &str, wanted: Quantity, known: &DiskStatus) -> Result<(), Option<Action>> {
        let grown = known.last == Some(ActionKind::GrowDisk) || known.grown_digest.is_some();
        if known.ordered_size == Some(wanted) && grown && draft.status.failure_with(ActionKind::GrowDisk, Some(volume)).is_none() {
            if let Some(until) = settling(self.inputs, known, ActionKind::GrowDisk) {
                self.findings.until(until);
                self.findings.hold("GrowingDisk", format!("disk {}", known.name));
                return Err(None);
            }
            // The agent checked it: PVE's config shows an old size, and goes on doing so until somebody changes it.
            let digest = known.grown_digest.clone().unwrap_or_else(|| self.vm.digest.clone());
            if digest == self.vm.digest {
                if let Some(entry) = entry(&mut draft.status, volume) {
                    entry.grown_digest = Some(digest);
                    entry.size = Some(wanted);
                }
                return Ok(());
            }
        }
        let host = self.host;
        Err(self.order(draft, ActionKind::GrowDisk, host, volume))
    }
}

/// Not put aside, not on its way out, and not merely named by a snapshot.
fn comes_with_next_start(attachment: &v1::VolumeAttachment, uuid: &str) -> bool {
    let slot = !attachment.slot.is_empty() && !attachment.slot.starts_with(ASIDE);
    slot && !attachment.pending_detach && attachment.vm.as_ref().is_some_and(|vm| vm.uuid == uuid)
}

/// Writes down what the VM's config tells.
fn take_in(draft: &mut Draft<'_>, volume: &str, disk: &DiskView, node: &str) {
    let Some(entry) = entry(&mut draft.status, volume) else { return };
    if !entry.attached {
        // Attached by somebody: with what options is not known.
        (entry.limits, entry.options_hash) = (None, None);
    }
    entry.phase = DiskPhase::Attached;
    (entry.requested, entry.created, entry.attached, entry.missing_on) = (true, true, true, None);
    entry.slot = Some(disk.slot.clone());
    if !disk.storage.is_empty() {
        entry.storage = Some(disk.storage.clone());
    }
    if disk.size_bytes > 0 {
        entry.size = Some(Quantity(disk.size_bytes));
    }
    entry.node.get_or_insert_with(|| node.to_owned());
}

/// Whether the agent's refusal to make a volume says that it may be there.
pub(super) fn may_exist(reason: &str) -> bool {
    reason == reason::VOLUME_EXISTS || reason == reason::AMBIGUOUS_VOLUME
}
