//! `pveletctl volumes <verb>`.

mod create;
mod reclaim;

use futures_util::future::join_all;
use pvelet_proto::{
    v1::{self, DiskLimits, DiskOptions, Operation, RequestMeta, VmRef, VolumeName, VolumeRef},
    volume::VolumeId,
};

use super::{Done, Progress, confirm, finish, insist, need_terminal, report, title, vm_ref};
use crate::{
    agents::{AgentClient, AgentError},
    cli::{
        CliError, Exit, Session,
        args::{
            Aio, AttachVolume, Cache, DeleteVolumes, HandOver, Limits, Mutation, NameOf, OneVolume, SureSnapshot, VolumeVerb, Volumes, word,
        },
        parse::VolumeArg,
        read,
        resolve::{
            self,
            volume::{Located, Looked},
        },
        table::bytes,
        view::VolumeView,
    },
};

pub(in crate::cli) async fn run(session: &Session, args: &Volumes) -> Result<Exit, CliError> {
    let Some(verb) = &args.verb else { return read::volume::list(session, &args.filter).await };
    if let Some(option) = args.filter.first_given() {
        return Err(CliError::Usage(format!("{option} before the verb chooses what is listed: write it behind the verb")));
    }
    match verb {
        VolumeVerb::Create(args) => create::create(session, args).await,
        VolumeVerb::Delete(args) => delete(session, args).await,
        VolumeVerb::Attach(args) => attach(session, args).await,
        VolumeVerb::Detach(args) => with_vm(session, &args.on, &args.vm, |vm, of| Change::Detach { vm, of }).await,
        VolumeVerb::Grow(args) => one(session, &args.on, |_| Ok(Change::Grow { size: args.size })).await,
        VolumeVerb::Limits(args) => one(session, &args.on, |l| limits(&args.limits, l)).await,
        VolumeVerb::Snapshot(args) => one(session, &args.on, |_| Ok(Change::Snapshot { name: args.name.clone() })).await,
        VolumeVerb::DeleteSnapshot(args) => {
            let name = args.snapshot.name.clone();
            let lost = format!(": its snapshot '{name}' is lost");
            losing(session, args, "delete-snapshot", &lost, "Remove it? [y/N] ", Change::DeleteSnapshot { name }).await
        }
        VolumeVerb::RollBack(args) => {
            let name = args.snapshot.name.clone();
            let lost = format!(": what was written to it since snapshot '{name}' is lost");
            losing(session, args, "roll-back", &lost, "Roll it back? [y/N] ", Change::RollBack { name }).await
        }
        VolumeVerb::Move(args) => {
            one(session, &args.on, |_| Ok(Change::Move { storage: args.to.clone(), format: word(args.format) })).await
        }
        VolumeVerb::HandOver(args) => hand_over(session, args).await,
        VolumeVerb::Reclaim(args) => reclaim::reclaim(session, args).await,
        VolumeVerb::Usage { tenant } => read::volume::usage(session, tenant.as_deref()).await,
    }
}

/// What loses data is asked for first, unless `--yes` says that it was thought of.
async fn losing(session: &Session, args: &SureSnapshot, verb: &str, lost: &str, question: &str, wanted: Change) -> Result<Exit, CliError> {
    let on = &args.snapshot.on;
    if args.yes {
        return one(session, on, |_| Ok(wanted)).await;
    }
    need_terminal(session, verb)?;
    let looked = resolve_one(session, on).await?;
    tell(session, &looked, &on.mutation, lost)?;
    if !confirm(session, question)? {
        session.io.note("nothing was changed");
        return Ok(Exit::Failed);
    }
    change(session, &looked, &on.mutation, &wanted).await
}

/// What is done to a volume.
enum Change {
    Delete,
    Attach { vm: VmRef, of: String, options: DiskOptions },
    Detach { vm: VmRef, of: String },
    Grow { size: u64 },
    Limits { limits: DiskLimits },
    Snapshot { name: String },
    DeleteSnapshot { name: String },
    RollBack { name: String },
    Move { storage: String, format: String },
    HandOver { vm: VmRef, of: String, to: VolumeName },
}

impl Change {
    /// What is done, for people.
    fn label(&self, id: &str) -> String {
        match self {
            Self::Delete => format!("delete of volume {id}"),
            Self::Attach { of, .. } => format!("attach of volume {id} to VM {of}"),
            Self::Detach { of, .. } => format!("detach of volume {id} from VM {of}"),
            Self::Grow { size } => format!("grow of volume {id} to {}", bytes(*size)),
            Self::Limits { .. } => format!("limits of volume {id}"),
            Self::Snapshot { name } => format!("snapshot '{name}' of volume {id}"),
            Self::DeleteSnapshot { name } => format!("delete of snapshot '{name}' of volume {id}"),
            Self::RollBack { name } => format!("roll-back of volume {id} to snapshot '{name}'"),
            Self::Move { storage, format } if format.is_empty() => format!("move of volume {id} to storage '{storage}'"),
            Self::Move { storage, format } => format!("move of volume {id} to storage '{storage}' as {format}"),
            Self::HandOver { of, to: VolumeName::Vm, .. } => format!("hand-over of volume {id} to VM {of}"),
            Self::HandOver { of, .. } => format!("hand-over of volume {id} from VM {of}"),
        }
    }

    async fn send(&self, agent: &AgentClient, meta: RequestMeta, volume: VolumeRef) -> Result<Operation, AgentError> {
        let (meta, volume, mut c) = (Some(meta), Some(volume), agent.volume());
        let operation = match self {
            Self::Delete => agent.answer(c.delete_volume(v1::DeleteVolumeRequest { meta, volume }).await)?.operation,
            Self::Attach { vm, options, .. } => {
                let request = v1::AttachVolumeRequest { meta, volume, vm: Some(vm.clone()), options: Some(options.clone()) };
                agent.answer(c.attach_volume(request).await)?.operation
            }
            Self::Detach { vm, .. } => {
                let request = v1::DetachVolumeRequest { meta, volume, vm: Some(vm.clone()) };
                agent.answer(c.detach_volume(request).await)?.operation
            }
            Self::Grow { size } => agent.answer(c.grow_volume(v1::GrowVolumeRequest { meta, volume, size_bytes: *size }).await)?.operation,
            Self::Limits { limits } => {
                let request = v1::SetVolumeLimitsRequest { meta, volume, limits: Some(*limits) };
                agent.answer(c.set_volume_limits(request).await)?.operation
            }
            Self::Snapshot { name } => {
                agent.answer(c.snapshot_volume(v1::SnapshotVolumeRequest { meta, volume, name: name.clone() }).await)?.operation
            }
            Self::DeleteSnapshot { name } => {
                let request = v1::DeleteVolumeSnapshotRequest { meta, volume, name: name.clone() };
                agent.answer(c.delete_volume_snapshot(request).await)?.operation
            }
            Self::RollBack { name } => {
                agent.answer(c.roll_back_volume(v1::RollBackVolumeRequest { meta, volume, name: name.clone() }).await)?.operation
            }
            Self::Move { storage, format } => {
                let request = v1::MoveVolumeRequest { meta, volume, storage: storage.clone(), format: format.clone() };
                agent.answer(c.move_volume(request).await)?.operation
            }
            Self::HandOver { vm, to, .. } => {
                let request = v1::HandOverVolumeRequest { meta, volume, vm: Some(vm.clone()), name: (*to).into() };
                agent.answer(c.hand_over_volume(request).await)?.operation
            }
        };
        operation.ok_or_else(|| agent.incomplete(&self.label(""), "operation"))
    }

    /// What people want to know once it is done.
    fn afterwards(&self, id: &str) -> Option<String> {
        match self {
            Self::Attach { .. } => Some(format!("  the guest finds it at {}\n", id.parse::<VolumeId>().ok()?.device_path())),
            _ => None,
        }
    }
}

async fn resolve_one(session: &Session, on: &OneVolume) -> Result<Looked, CliError> {
    resolve::volume::volumes(session, std::slice::from_ref(&on.volume), on.storage.as_deref()).await
}

/// A change of one volume that needs no VM.
async fn one(session: &Session, on: &OneVolume, of: impl FnOnce(&Located) -> Result<Change, CliError>) -> Result<Exit, CliError> {
    let looked = resolve_one(session, on).await?;
    let what = of(&looked.found[0])?;
    change(session, &looked, &on.mutation, &what).await
}

/// A change of one volume and a VM, on the VM's host.
async fn with_vm(session: &Session, on: &OneVolume, vm: &str, of: impl FnOnce(VmRef, String) -> Change) -> Result<Exit, CliError> {
    let vms = resolve::vms(session, &[vm.to_owned()]).await?;
    let vm = &vms[0];
    let what = of(vm_ref(vm)?, title(vm.vm.vmid, &vm.vm.name));
    let looked = resolve_one(session, on).await?;
    let located = &looked.found[0];
    check_tenant(session, located, &on.mutation)?;
    located.check_on(&vm.agent)?;
    changes(session, &[(vm.agent.clone(), located)], &on.mutation, &what).await
}

/// Another tenant's volume is not found by the agent, which would be hard to understand here, where it has just been found.
fn check_tenant(session: &Session, located: &Located, mutation: &Mutation) -> Result<(), CliError> {
    let asked = mutation.tenant.as_ref().unwrap_or(&session.tenant);
    match &located.volume.owner {
        Some(owner) if owner.tenant != *asked => Err(CliError::Usage(format!(
            "volume {} is of tenant '{}', and this is for tenant '{asked}': give --tenant {} if you mean it",
            located.volume.id, owner.tenant, owner.tenant
        ))),
        _ => Ok(()),
    }
}

async fn change(session: &Session, looked: &Looked, mutation: &Mutation, what: &Change) -> Result<Exit, CliError> {
    let mut on = Vec::new();
    for l in &looked.found {
        check_tenant(session, l, mutation)?;
        on.push((l.for_change(&looked.failed, session)?.clone(), l));
    }
    changes(session, &on, mutation, what).await
}

async fn changes(session: &Session, on: &[(AgentClient, &Located)], mutation: &Mutation, what: &Change) -> Result<Exit, CliError> {
    let progress = Progress::new(&session.io, session.format);
    let all = join_all(on.iter().map(|(agent, l)| {
        let progress = &progress;
        async move {
            let id = &l.volume.id;
            let label = format!("{}: {}", agent.name(), what.label(id));
            let request_id = mutation.request_id();
            let meta = session.meta(mutation, &request_id);
            let volume = VolumeRef { id: id.clone(), storage: l.volume.storage.clone() };
            let end = match insist(|| what.send(agent, meta.clone(), volume.clone())).await {
                Ok(accepted) => finish(agent, &label, accepted, mutation, progress).await,
                Err(e) => Err(e),
            };
            Done { label, host: agent.name().to_owned(), end, request_id, afterwards: what.afterwards(id) }
        }
    }))
    .await;
    report(session, &all, mutation)
}

/// Says what is about to be done to which volumes.
fn tell(session: &Session, looked: &Looked, mutation: &Mutation, what: &str) -> Result<(), CliError> {
    for l in &looked.found {
        check_tenant(session, l, mutation)?;
        let view = VolumeView::new(l.agent().name(), l.shared, &l.volume);
        let owner = view.owner.as_ref().map_or_else(|| "nobody".to_owned(), |o| o.text());
        let attached = view.attachment.as_ref().map(|a| format!(", attached to VM {}", a.vmid)).unwrap_or_default();
        let (id, size, storage) = (&view.id, bytes(view.size_bytes), &view.storage);
        session.io.note(&format!("volume {id} of {owner} on {}, storage {storage}, {size}{attached}{what}", view.host));
    }
    Ok(())
}

async fn delete(session: &Session, args: &DeleteVolumes) -> Result<Exit, CliError> {
    if args.mutation.request_id.is_some() && args.volumes.len() > 1 {
        return Err(CliError::Usage("--request-id names one request: give it with one volume".to_owned()));
    }
    if !args.yes {
        need_terminal(session, "delete")?;
    }
    let looked = resolve::volume::volumes(session, &args.volumes, args.storage.as_deref()).await?;
    if !args.yes {
        tell(session, &looked, &args.mutation, "")?;
        if !confirm(session, "Delete for good? [y/N] ")? {
            session.io.note("nothing was deleted");
            return Ok(Exit::Failed);
        }
    }
    change(session, &looked, &args.mutation, &Change::Delete).await
}

async fn attach(session: &Session, args: &AttachVolume) -> Result<Exit, CliError> {
    if args.aio == Some(Aio::Native) && !matches!(args.cache, None | Some(Cache::None | Cache::Directsync)) {
        return Err(CliError::Usage(format!(
            "--aio native does not go with --cache {}: use --cache none or directsync, or --aio io_uring or threads",
            word(args.cache)
        )));
    }
    let set = |flag: bool| flag.then_some(true);
    let options = DiskOptions {
        cache: word(args.cache),
        aio: word(args.aio),
        iothread: args.iothread,
        discard: args.discard,
        ssd: args.ssd,
        backup: set(args.backup),
        replicate: set(args.replicate),
        read_only: args.read_only,
        limits: Some(merged(&args.limits, DiskLimits::default())).filter(|l| *l != DiskLimits::default()),
    };
    with_vm(session, &args.what.on, &args.what.vm, |vm, of| Change::Attach { vm, of, options }).await
}

/// The limits given, and `base` for the others.
fn merged(given: &Limits, base: DiskLimits) -> DiskLimits {
    DiskLimits {
        iops_read: given.iops_read.unwrap_or(base.iops_read),
        iops_write: given.iops_write.unwrap_or(base.iops_write),
        mbps_read: given.mbps_read.unwrap_or(base.mbps_read),
        mbps_write: given.mbps_write.unwrap_or(base.mbps_write),
    }
}

/// The agent sets all limits at once; those that are not given stay as they are.
fn limits(given: &Limits, located: &Located) -> Result<Change, CliError> {
    let attachment = located.volume.attachment.as_ref();
    let base = attachment.and_then(|a| a.options.as_ref()).and_then(|o| o.limits).unwrap_or_default();
    Ok(Change::Limits { limits: merged(given, base) })
}

async fn hand_over(session: &Session, args: &HandOver) -> Result<Exit, CliError> {
    let to = match args.to {
        NameOf::Vm => VolumeName::Vm,
        NameOf::Reserved => VolumeName::Reserved,
    };
    with_vm(session, &args.what.on, &args.what.vm, |vm, of| Change::HandOver { vm, of, to }).await
}

/// The volume that a new one is copied from.
async fn source(session: &Session, name: &VolumeArg, mutation: &Mutation) -> Result<Located, CliError> {
    let mut looked = resolve::volume::volumes(session, std::slice::from_ref(name), None).await?;
    let located = looked.found.remove(0);
    check_tenant(session, &located, mutation)?;
    Ok(located)
}
