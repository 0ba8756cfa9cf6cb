//! `pveletctl volumes reclaim`.

use std::collections::BTreeSet;

use pvelet_proto::v1::{Host, ReclaimVolumesRequest, ReclaimVolumesResponse, Volume};

use super::{Done, Progress, confirm, finish, insist, need_terminal};
use crate::{
    agents::{AgentClient, AgentError, HostResult, fan_out},
    cli::{
        CliError, Exit, Session,
        act::{bad_lines, ends, good_line},
        args::{Format, Reclaim},
        error::of_many,
        output,
        read::volume::{table, whole},
        resolve::volume::is_shared,
        table::bytes,
        view::{ErrorView, OperationView, Reclaimed, UnreachableView, VolumeView},
    },
};

/// What one host found, and its own facts.
type Found = (Host, ReclaimVolumesResponse);

fn request(session: &Session, args: &Reclaim, request_id: &str, dry_run: bool) -> ReclaimVolumesRequest {
    ReclaimVolumesRequest {
        meta: Some(session.meta(&args.mutation, request_id)),
        cluster: args.cluster.clone().unwrap_or_default(),
        all_clusters: args.all_clusters,
        dry_run,
    }
}

async fn ask(agent: &AgentClient, request: &ReclaimVolumesRequest) -> Result<Found, AgentError> {
    let answer = insist(|| async { agent.answer(agent.volume().reclaim_volumes(request.clone()).await) });
    futures_util::try_join!(agent.get_host(), answer)
}

impl Reclaimed {
    /// Adds what a host found. What is on a shared storage is found by every host that sees it, and told once.
    fn add(&mut self, name: &str, (host, answer): &Found, seen: &mut BTreeSet<(String, String)>) {
        let mut views = |volumes: &[Volume]| {
            let mut all = Vec::new();
            for v in volumes {
                let shared = is_shared(host, &v.storage);
                if !shared || seen.insert((host.cluster.clone(), v.volid.clone())) {
                    all.push(VolumeView::new(name, shared, v));
                }
            }
            all
        };
        self.volumes.extend(views(&answer.volumes));
        self.kept.extend(views(&answer.kept));
        self.nobodys.extend(views(&answer.nobodys));
        self.unreachable.extend(answer.unreachable.iter().map(|text| UnreachableView::new(name, text)));
    }
}

pub(super) async fn reclaim(session: &Session, args: &Reclaim) -> Result<Exit, CliError> {
    if !args.yes && !args.dry_run {
        need_terminal(session, "reclaim")?;
    }
    if !args.yes {
        let (found, results) = look(session, args).await;
        let exit = whole(of_many(results.len(), results.iter().filter_map(|r| r.result.as_ref().err())), &found.unreachable);
        if args.dry_run {
            output::print(&session.io, session.format, &found, |f| text(session.io.colour, f, "would be removed"))?;
            tell_missing(session, &found);
            return Ok(exit);
        }
        session.io.note(text(session.io.err_colour, &found, "to be removed").trim_end());
        tell_missing(session, &found);
        if found.volumes.is_empty() {
            if !matches!(session.format, Format::Table | Format::Wide) {
                output::print(&session.io, session.format, &found, |_| String::new())?;
            }
            return Ok(exit);
        }
        if !confirm(session, "Delete these for good? [y/N] ")? {
            session.io.note("nothing was deleted");
            return Ok(Exit::Failed);
        }
    }
    act(session, args).await
}

async fn look(session: &Session, args: &Reclaim) -> (Reclaimed, Vec<HostResult<Found>>) {
    let request = request(session, args, &args.mutation.request_id(), true);
    let results = fan_out(&session.agents, session.deadline, |a| {
        let request = &request;
        async move { ask(&a, request).await }
    })
    .await;
    let (mut found, mut seen) = (Reclaimed::default(), BTreeSet::new());
    for r in &results {
        match &r.result {
            Ok(told) => found.add(&r.host, told, &mut seen),
            Err(e) => found.errors.push(ErrorView::from(e)),
        }
    }
    (found, results)
}

fn text(colour: bool, found: &Reclaimed, fate: &str) -> String {
    let size = bytes(found.volumes.iter().map(|v| v.size_bytes).sum());
    let mut text = match found.volumes.len() {
        0 => "no volumes to be removed\n".to_owned(),
        1 => format!("1 volume {fate}, {size}:\n{}", table(&found.volumes).render(colour, "")),
        n => format!("{n} volumes {fate}, {size}:\n{}", table(&found.volumes).render(colour, "")),
    };
    if !found.kept.is_empty() {
        text += &format!("{} kept:\n{}", found.kept.len(), table(&found.kept).render(colour, ""));
    }
    if !found.nobodys.is_empty() {
        text += &format!("{} without an owner are never removed; pveletctl volumes --nobodys lists them\n", found.nobodys.len());
    }
    text
}

fn tell_missing(session: &Session, found: &Reclaimed) {
    session.tell_unreachable(&found.unreachable);
    session.tell_missing(&found.errors);
}

/// One host after the other: what is on a shared storage is then gone when the next one looks, instead of being fought over.
async fn act(session: &Session, args: &Reclaim) -> Result<Exit, CliError> {
    let progress = Progress::new(&session.io, session.format);
    let (mut all, mut done, mut seen) = (Reclaimed::default(), Vec::new(), BTreeSet::new());
    let request_id = args.mutation.request_id();
    let request = request(session, args, &request_id, false);
    for agent in &session.agents {
        let host = agent.name().to_owned();
        let mut label = format!("{host}: reclaim for tenant '{}'", request.meta.as_ref().map_or("", |m| &m.tenant));
        let end = match ask(agent, &request).await {
            Ok(found) => {
                label = format!("{label}, volumes: {}", found.1.volumes.len());
                all.add(&host, &found, &mut seen);
                match found.1.operation {
                    Some(accepted) => finish(agent, &label, accepted, &args.mutation, &progress).await,
                    None => Err(agent.incomplete("ReclaimVolumes", "operation")),
                }
            }
            Err(e) => Err(e),
        };
        match &end {
            Ok((o, _)) => all.operations.push(OperationView::new(&host, o)),
            Err(e) => all.errors.push(ErrorView::from(e)),
        }
        done.push(Done { label, host, end, request_id: request_id.clone(), afterwards: None });
    }
    output::print(&session.io, session.format, &all, |all| {
        let lines = done.iter().filter_map(|d| good_line(d, args.mutation.no_wait));
        // Who was asked has seen them.
        if args.yes { text(session.io.colour, all, "to be removed") + &lines.collect::<String>() } else { lines.collect() }
    })?;
    session.tell_unreachable(&all.unreachable);
    for d in &done {
        bad_lines(session, d);
    }
    let exit = match ends(&done) {
        Exit::Unreachable if !all.operations.is_empty() => Exit::Partial,
        exit => exit,
    };
    Ok(whole(exit, &all.unreachable))
}
