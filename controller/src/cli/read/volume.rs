//! Commands that only look, at volumes and storages.

use std::collections::BTreeSet;

use pvelet_proto::v1;

use super::{empty, errors, views};
use crate::{
    agents::fan_out,
    cli::{
        CliError, Exit, Session,
        args::VolumeFilter,
        error::of_many,
        output,
        parse::VolumeArg,
        resolve::volume::{self, is_shared},
        table::{Look, Rows, bytes},
        view::{StorageView, Storages, UnreachableView, UsageView, Usages, VolumeView, Volumes},
    },
};

impl Session {
    /// Says which storages are missing in what was printed.
    pub(in crate::cli) fn tell_unreachable(&self, unreachable: &[UnreachableView]) {
        for u in unreachable {
            self.io.error(&format!("{}: storage {}: {}", u.host, u.storage, u.message));
        }
    }
}

/// A list without what a storage holds is not whole, whatever else went well.
pub(in crate::cli) fn whole(exit: Exit, unreachable: &[UnreachableView]) -> Exit {
    if exit == Exit::Ok && !unreachable.is_empty() { Exit::Partial } else { exit }
}

pub(in crate::cli) async fn list(session: &Session, filter: &VolumeFilter) -> Result<Exit, CliError> {
    let results = volume::gather(session, &filter.request()).await?;
    let found = volume::each_once(&session.agents, &results);
    let views_of = |l: &volume::Located| VolumeView::new(l.agent().name(), l.shared, &l.volume);
    let all =
        Volumes { volumes: found.iter().map(views_of).collect(), unreachable: volume::unreachable(&results), errors: views(&results) };
    let colour = session.io.colour;
    output::print(&session.io, session.format, &all, |a| {
        let nothing = if a.unreachable.is_empty() { "no volumes" } else { "no volumes on the storages that could be asked" };
        table(&a.volumes).render(colour, empty(nothing, results.len(), a.errors.len()))
    })?;
    session.tell_unreachable(&all.unreachable);
    session.tell_missing(&all.errors);
    Ok(whole(of_many(results.len(), errors(&results)), &all.unreachable))
}

/// Volumes as rows.
pub(in crate::cli) fn table(volumes: &[VolumeView]) -> Rows {
    let mut rows = Rows::new(&["HOST", "ID", "STORAGE", "FORMAT", "SIZE", "USED", "OWNER", "ATTACHED", "NOTE"]);
    for v in volumes {
        let attached = v.attachment.as_ref().map(|a| format!("{}:{}", a.vmid, if a.slot.is_empty() { "snapshot" } else { &a.slot }));
        let look = match (&v.problem, &attached) {
            (Some(_), _) => Look::Bad,
            (None, None) => Look::Dim,
            (None, Some(_)) => Look::Plain,
        };
        rows.add(
            look,
            vec![
                v.host.clone(),
                v.id.clone(),
                v.storage.clone(),
                v.format.clone(),
                bytes(v.size_bytes),
                v.used_bytes.map(bytes).unwrap_or_default(),
                v.owner.as_ref().map(|o| o.text()).unwrap_or_default(),
                attached.unwrap_or_default(),
                v.note(),
            ],
        );
    }
    rows
}

pub(in crate::cli) async fn get(session: &Session, names: &[VolumeArg], storage: Option<&str>) -> Result<Exit, CliError> {
    let looked = volume::volumes(session, names, storage).await?;
    let mut volumes = Vec::new();
    for l in &looked.found {
        let (agent, named) = (l.agent(), v1::VolumeRef { id: l.volume.id.clone(), storage: l.volume.storage.clone() });
        let answer = agent.answer(agent.volume().get_volume(v1::GetVolumeRequest { volume: Some(named) }).await)?;
        let volume = answer.volume.ok_or_else(|| agent.incomplete("GetVolume", "volume"))?;
        volumes.push(VolumeView::whole(agent.name(), l.shared, &volume));
    }
    let all = Volumes { volumes, unreachable: Vec::new(), errors: Vec::new() };
    output::print(&session.io, session.format, &all, |a| output::yaml(&a.volumes).unwrap_or_default())?;
    Ok(Exit::Ok)
}

pub(in crate::cli) async fn storages(session: &Session) -> Result<Exit, CliError> {
    let results = fan_out(&session.agents, session.deadline, |a| async move {
        Ok(a.answer(a.volume().list_storages(v1::ListStoragesRequest {}).await)?.storages)
    })
    .await;
    let told = results.iter().filter_map(|r| Some((r.host.as_str(), r.result.as_ref().ok()?)));
    let all = told.flat_map(|(host, storages)| storages.iter().map(move |s| StorageView::new(host, s))).collect();
    let storages = Storages { storages: all, errors: views(&results) };
    let colour = session.io.colour;
    output::print(&session.io, session.format, &storages, |s| {
        storage_table(s).render(colour, empty("no storages", results.len(), s.errors.len()))
    })?;
    session.tell_missing(&storages.errors);
    Ok(of_many(results.len(), errors(&results)))
}

fn storage_table(storages: &Storages) -> Rows {
    let header = &["HOST", "STORAGE", "TYPE", "SHARED", "STATUS", "CONTENT", "SIZE", "FREE", "USED%", "FORMATS", "NOTE"];
    let mut rows = Rows::new(header);
    for s in &storages.storages {
        let (look, status) = match (s.enabled, s.active, &s.problem) {
            (false, _, _) => (Look::Dim, "disabled"),
            (true, false, _) => (Look::Bad, "inactive"),
            (true, true, Some(_)) => (Look::Bad, "error"),
            (true, true, None) => (Look::Plain, "ok"),
        };
        let known = |n: u64| if s.total_bytes > 0 { bytes(n) } else { String::new() };
        let used = s.total_bytes.saturating_sub(s.available_bytes);
        // In full numbers: a storage is full when it says 100, not before.
        let percent = (u128::from(used) * 100).checked_div(u128::from(s.total_bytes)).map(|p| format!("{p}%"));
        let note = match (&s.problem, s.volumes) {
            (Some(problem), _) => problem.clone(),
            (None, false) => "no volumes: it keeps no owners".to_owned(),
            (None, true) => String::new(),
        };
        rows.add(
            look,
            vec![
                s.host.clone(),
                s.id.clone(),
                s.r#type.clone(),
                if s.shared { "yes" } else { "no" }.to_owned(),
                status.to_owned(),
                s.content.join(","),
                known(s.total_bytes),
                known(s.available_bytes),
                percent.unwrap_or_default(),
                s.formats.join(","),
                note,
            ],
        );
    }
    rows
}

pub(in crate::cli) async fn usage(session: &Session, tenant: Option<&str>) -> Result<Exit, CliError> {
    let results = fan_out(&session.agents, session.deadline, |a| async move {
        let request = v1::GetVolumeUsageRequest { tenant: tenant.unwrap_or_default().to_owned() };
        let counted = async { a.answer(a.volume().get_volume_usage(request).await) };
        futures_util::try_join!(a.get_host(), counted)
    })
    .await;
    let mut all = Usages { usage: Vec::new(), unreachable: Vec::new(), errors: views(&results) };
    // What is on a shared storage is counted by every host that sees it, and told once.
    let mut counted = BTreeSet::new();
    for r in &results {
        let Ok((host, answer)) = &r.result else { continue };
        all.unreachable.extend(answer.unreachable.iter().map(|text| UnreachableView::new(&r.host, text)));
        let here: Vec<&v1::VolumeUsage> =
            answer.usage.iter().filter(|u| !counted.contains(&(host.cluster.clone(), u.storage.clone()))).collect();
        for u in &here {
            let shared = is_shared(host, &u.storage);
            if shared {
                counted.insert((host.cluster.clone(), u.storage.clone()));
            }
            all.usage.push(UsageView {
                host: r.host.clone(),
                storage: u.storage.clone(),
                shared,
                owner: u.owner.as_ref().map(Into::into),
                volumes: u.volumes,
                size_bytes: u.size_bytes,
                used_bytes: u.used_bytes,
            });
        }
    }
    let key = |u: &UsageView| (u.owner.is_none(), u.owner.as_ref().map(|o| o.text()), u.storage.clone(), u.host.clone());
    all.usage.sort_by_key(key);
    let colour = session.io.colour;
    output::print(&session.io, session.format, &all, |a| {
        let mut rows = Rows::new(&["TENANT", "CLUSTER", "HOST", "STORAGE", "VOLUMES", "SIZE", "USED"]);
        for u in &a.usage {
            let (tenant, cluster) = u.owner.as_ref().map(|o| (o.tenant.clone(), o.cluster.clone())).unwrap_or_default();
            let (size, used) = (bytes(u.size_bytes), bytes(u.used_bytes));
            rows.add(Look::Plain, vec![tenant, cluster, u.host.clone(), u.storage.clone(), u.volumes.to_string(), size, used]);
        }
        rows.render(colour, empty("no volumes", results.len(), a.errors.len()))
    })?;
    session.tell_unreachable(&all.unreachable);
    session.tell_missing(&all.errors);
    Ok(whole(of_many(results.len(), errors(&results)), &all.unreachable))
}
