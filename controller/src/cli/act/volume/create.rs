//! `pveletctl volumes create`.

use pvelet_proto::v1::{self, ImageSource, SnapshotSource, VolumeOwner, VolumeRef, create_volume_request::Source, image_source::Location};

use super::{Done, Progress, finish, insist, report, source};
use crate::{
    agents::AgentClient,
    cli::{
        CliError, Exit, Session,
        args::{CreateVolume, word},
        parse::{ImageArg, VolumeArg},
        resolve::volume::Located,
    },
};

pub(super) async fn create(session: &Session, args: &CreateVolume) -> Result<Exit, CliError> {
    let (agent, source) = find_source(session, args).await?;
    let request_id = args.mutation.request_id();
    let text = |option: &Option<String>| option.clone().unwrap_or_default();
    let owner = VolumeOwner { tenant: String::new(), cluster: text(&args.cluster), claim: text(&args.claim) };
    let request = v1::CreateVolumeRequest {
        meta: Some(session.meta(&args.mutation, &request_id)),
        id: text(&args.id),
        storage: args.storage.clone(),
        size_bytes: args.size.unwrap_or(0),
        format: word(args.format),
        owner: Some(owner).filter(|o| *o != VolumeOwner::default()),
        source,
    };
    let progress = Progress::new(&session.io, session.format);
    let host = agent.name().to_owned();
    let accepted = insist(|| async {
        let answer = agent.answer(agent.volume().create_volume(request.clone()).await)?;
        answer.operation.ok_or_else(|| agent.incomplete("CreateVolume", "operation"))
    })
    .await;
    let (label, end) = match accepted {
        Ok(o) => {
            // The agent has chosen the id where nobody else did.
            let id = o.volume.as_ref().map(|v| v.id.clone()).unwrap_or_default();
            let label = format!("{host}: create of volume {id}");
            let end = finish(&agent, &label, o, &args.mutation, &progress).await;
            (label, end)
        }
        Err(e) => (format!("{host}: create of a volume on storage '{}'", args.storage), Err(e)),
    };
    report(session, &[Done { label, host, end, request_id, afterwards: None }], &args.mutation)
}

/// What the volume is filled with, and the host that can.
async fn find_source(session: &Session, args: &CreateVolume) -> Result<(AgentClient, Option<Source>), CliError> {
    let named = |l: &Located| VolumeRef { id: l.volume.id.clone(), storage: l.volume.storage.clone() };
    if let Some(name) = &args.from_volume {
        let (agent, located) = beside(session, args, name).await?;
        return Ok((agent, Some(Source::Volume(named(&located)))));
    }
    if let Some(of) = &args.from_snapshot {
        let (agent, located) = beside(session, args, &of.volume).await?;
        return Ok((agent, Some(Source::Snapshot(SnapshotSource { volume: Some(named(&located)), name: of.name.clone() }))));
    }
    let agent = session.one_agent("create")?.clone();
    let image = args.image.as_ref().map(|image| {
        let location = match image {
            ImageArg::File(path) => Location::File(path.clone()),
            ImageArg::Volid(volid) => Location::Volid(volid.clone()),
        };
        let (format, sha256) = (word(args.image_format), args.sha256.clone().unwrap_or_default());
        Source::Image(ImageSource { location: Some(location), format, sha256 })
    });
    Ok((agent, image))
}

/// The host of the volume that is copied. Where several see it, one must be named: the copy may be for that one alone.
async fn beside(session: &Session, args: &CreateVolume, name: &VolumeArg) -> Result<(AgentClient, Located), CliError> {
    let located = source(session, name, &args.mutation).await?;
    let agent = if located.shared { session.one_agent("create from a volume of a shared storage")? } else { located.agent() };
    Ok((agent.clone(), located))
}
