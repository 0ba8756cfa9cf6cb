//! Copies into a volume: cleared first, converted by qemu-img, on disk at the end.

use std::{
    fs::File,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::PathBuf,
};

use rustix::fs::OFlags;
use tokio::sync::mpsc;

use super::{
    At, Copied, Image, ImageInfo, Source,
    command::{blocking, failed, io_error},
    image,
    kind::{Kind, Place},
    qemu_img::{self, Convert},
};
use crate::error::Error;

/// Copies into `to`. `source`: the kind of storage on which a source volume lies.
pub(super) async fn run(
    from: &Source,
    source: Option<&dyn Kind>,
    to: &At,
    target: &dyn Kind,
    progress: mpsc::UnboundedSender<Copied>,
) -> Result<(), Error> {
    if let Source::Volume { at, .. } = from
        && (&at.storage.id, &at.name) == (&to.storage.id, &to.name)
    {
        return Err(failed(&to.storage.id, format!("{} cannot be copied into itself", to.name)));
    }
    let copied = match (from, source) {
        (Source::Volume { at, snapshot }, Some(kind)) => {
            let mut place = kind.place(at, snapshot.as_deref()).await?;
            let after = place.after.take();
            let copied = Box::pin(convert(&Read::of(&place), None, to, target, progress)).await;
            if let Some(after) = after {
                after.run().await;
            }
            copied
        }
        (Source::Image(image, info), _) => Box::pin(import(image, info, to, target, progress)).await,
        (Source::Volume { at, .. }, None) => Err(Error::Internal(format!("no kind for the source {}", at.name))),
    };
    match copied {
        // A thin pool that runs out of space is told to the writer as an I/O error.
        Err(error @ Error::StorageFailed { .. }) => match target.full().await {
            Some(detail) => Err(Error::StorageFull { storage: to.storage.id.clone(), detail }),
            None => Err(error),
        },
        other => other,
    }
}

/// What is read.
struct Read<'a> {
    format: Option<&'a str>,
    url: &'a str,
    direct: bool,
    snapshot: Option<&'a str>,
    size: u64,
}

impl<'a> Read<'a> {
    fn of(place: &'a Place) -> Self {
        Self { format: Some(&place.format), url: &place.url, direct: place.direct, snapshot: place.snapshot.as_deref(), size: place.size }
    }
}

/// An image is read through its descriptor. What it says is looked at once more, and that it did not change meanwhile: its owner may write
/// to it at any time.
async fn import(image: &Image, info: &ImageInfo, to: &At, target: &dyn Kind, progress: mpsc::UnboundedSender<Copied>) -> Result<(), Error> {
    let before = stamped(image).await?;
    let found = image::look_at(image).await?;
    if found.format != info.format || found.virtual_size > info.virtual_size {
        return Err(image::changed(image));
    }
    let url = qemu_img::open_url(info.format);
    let read = Read { format: None, url: &url, direct: false, snapshot: None, size: found.virtual_size };
    convert(&read, Some(image), to, target, progress).await?;
    if stamped(image).await? == before { Ok(()) } else { Err(image::changed(image)) }
}

/// Size and times of a file, of which a write changes at least one.
pub(super) type Stamp = (u64, i64, i64, i64, i64);

async fn stamped(image: &Image) -> Result<Stamp, Error> {
    let image = image.clone();
    blocking("images", move || stamp(&image)).await
}

/// What changes with each write to a file. Blocks.
pub(super) fn stamp(image: &Image) -> Result<Stamp, Error> {
    let found = image.file.metadata().map_err(|e| Error::Internal(format!("image {}: {e}", image.path)))?;
    Ok((found.len(), found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()))
}

async fn convert(
    read: &Read<'_>,
    image: Option<&Image>,
    to: &At,
    target: &dyn Kind,
    progress: mpsc::UnboundedSender<Copied>,
) -> Result<(), Error> {
    let id = to.storage.id.as_str();
    let place = target.place(to, None).await?;
    if place.size < read.size {
        return Err(failed(id, format!("{} has {} bytes, the source has {}: allocate it as large", to.name, place.size, read.size)));
    }
    let zero = target.clear(to, &place, read.size).await?;
    // Opened before anything is written: only so does it learn of every write that fails later on, also of those that are told to qemu-img
    // when it closes the target, which it does not pass on.
    let held = match place.path.clone() {
        Some(path) => Some(hold(id, path).await?),
        None => None,
    };
    let total = read.size;
    let told = |hundredths: u32| {
        let done = u64::try_from(u128::from(total) * u128::from(hundredths) / 10_000).unwrap_or(total);
        // Nobody may be interested in it.
        let _ = progress.send(Copied { done, total });
    };
    let convert = Convert {
        source_format: read.format,
        source: read.url,
        source_direct: read.direct,
        snapshot: read.snapshot,
        format: &place.format,
        target: &place.url,
        target_direct: place.direct,
        zero,
    };
    convert.run(id, image, told).await?;
    if let Some((file, path)) = held {
        let id = id.to_owned();
        let synced =
            tokio::task::spawn_blocking(move || file.sync_all().map_err(|e| io_error(&id, format!("flushing {}", path.display()), &e)));
        synced.await.unwrap_or_else(|e| Err(Error::Internal(format!("flushing: {e}"))))?;
    }
    let _ = progress.send(Copied { done: total, total });
    Ok(())
}

async fn hold(storage: &str, path: PathBuf) -> Result<(File, PathBuf), Error> {
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::CLOEXEC).bits()).unwrap_or_default();
    blocking(storage, {
        let id = storage.to_owned();
        move || {
            let file = File::options().write(true).custom_flags(flags).open(&path);
            file.map(|f| (f, path.clone())).map_err(|e| io_error(&id, path.display(), &e))
        }
    })
    .await
}
