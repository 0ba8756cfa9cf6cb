//! The image that a new volume is filled with: found, looked at, and compared with the caller's checksum before a byte of it is copied.

use pvelet_proto::{id, reason, v1};
use tokio::sync::mpsc;

use super::hold::tell_progress;
use crate::{
    error::{Error, Violation},
    host::storage::{Image, ImageInfo, Source},
    operation::Handle,
    vm::Inner,
};

/// What can be judged of an image source by itself.
pub(super) fn check(image: &v1::ImageSource) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut add = |field: &str, reason, text: String| violations.push(Violation::new(format!("image.{field}"), reason, text));
    match &image.location {
        None => {
            add("file", reason::INVALID_FIELD, "it is missing; name a file of an import folder, or a volid of content type import".into());
        }
        Some(v1::image_source::Location::File(file)) if file.is_empty() || file.len() > 4096 => {
            add("file", reason::INVALID_FIELD, "a path of 1 to 4096 bytes is needed".into());
        }
        Some(v1::image_source::Location::File(_)) => {}
        Some(v1::image_source::Location::Volid(volid)) => {
            let good = volid.split_once(':').is_some_and(|(storage, name)| {
                let file = name.strip_prefix("import/");
                id::storage(storage).is_ok() && file.is_some_and(|f| !f.is_empty() && !f.starts_with('.') && !f.contains(['/', ' ']))
            });
            if !good {
                let text = format!("'{volid}' is no volume of content type import; write it like 'local:import/debian-13.qcow2'");
                add("volid", reason::IMAGE_REFUSED, text);
            }
        }
    }
    if !matches!(image.format.as_str(), "" | "raw" | "qcow2") {
        add("format", reason::INVALID_FORMAT, format!("'{}' is not imported; use raw or qcow2, and convert others first", image.format));
    }
    let hex = image.sha256.bytes().all(|c| c.is_ascii_hexdigit());
    if !(image.sha256.is_empty() || hex && image.sha256.len() == 64) {
        add("sha256", reason::INVALID_FIELD, format!("'{}' is no SHA-256; 64 hexadecimal digits are needed", image.sha256));
    }
    violations
}

impl Inner {
    /// Opens the image. Errors: `ImageNotFound`, `Invalid` with `IMAGE_REFUSED`, `StorageOffline`.
    pub(super) async fn open_image(&self, source: &v1::ImageSource) -> Result<Image, Error> {
        match &source.location {
            Some(v1::image_source::Location::Volid(volid)) => {
                let storage = volid.split(':').next().unwrap_or_default();
                let not_found = || Error::ImageNotFound { image: volid.clone(), place: format!("on storage '{storage}'") };
                let detail = self.pve.volume(volid).await?.ok_or_else(not_found)?;
                let (folder, name) = self.store.locate(&detail.path).ok_or_else(not_found)?;
                self.store.open_image(&[folder], &name).await
            }
            Some(v1::image_source::Location::File(file)) => {
                let folders = &self.settings.volumes.import_folders;
                if folders.is_empty() {
                    let text = format!(
                        "'{file}' cannot be imported: this agent has no import folders; set volumes.import_folders in its configuration, or use a volid"
                    );
                    return Err(Error::invalid("image.file", reason::IMAGE_REFUSED, text));
                }
                self.store.open_image(folders, file).await
            }
            None => Err(Error::invalid("image.file", reason::INVALID_FIELD, "it is missing")),
        }
    }

    /// The image, looked at and compared with its checksum: ready to be copied. Errors: `Invalid` with `IMAGE_REFUSED`, `IMAGE_CORRUPT` or
    /// `CHECKSUM_MISMATCH`.
    pub(super) async fn image_source(&self, h: &Handle, source: &v1::ImageSource) -> Result<(Source, u64), Error> {
        let image = self.open_image(source).await?;
        h.step(format!("looking at {}", image.path));
        let info: ImageInfo = self.store.inspect(&image, Some(source.format.as_str()).filter(|f| !f.is_empty())).await?;
        if !source.sha256.is_empty() {
            h.step(format!("checking the SHA-256 of {}", image.path));
            let (tell, mut told) = mpsc::unbounded_channel();
            let mut hash = self.store.sha256(&image, tell);
            let found = loop {
                tokio::select! {
                    result = &mut hash => break result?,
                    Some(copied) = told.recv() => tell_progress(h, copied),
                    () = h.cancelled() => return Err(h.check_cancelled().err().unwrap_or(Error::AgentDraining)),
                }
            };
            if !found.eq_ignore_ascii_case(&source.sha256) {
                let text = format!("{} has SHA-256 {found}, not {}; fetch it again, or correct the checksum", image.path, source.sha256);
                return Err(Error::invalid("image.sha256", reason::CHECKSUM_MISMATCH, text));
            }
        }
        let size = info.virtual_size;
        Ok((Source::Image(image, info), size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volid_must_be_of_content_type_import() {
        use v1::image_source::Location;
        for (volid, good) in [
            ("local:import/debian.qcow2", true),
            ("local:iso/debian.iso", false),
            ("local:100/vm-100-disk-0.raw", false),
            ("local:import/../images/x", false),
            ("local:import/.hidden", false),
            ("local:import/", false),
            ("/etc/passwd", false),
            ("import/x", false),
        ] {
            let image = v1::ImageSource { location: Some(Location::Volid(volid.into())), ..v1::ImageSource::default() };
            assert_eq!(check(&image).is_empty(), good, "{volid}");
        }
    }

    #[test]
    fn each_mistake_names_its_field() {
        let image = v1::ImageSource { location: None, format: "vmdk".into(), sha256: "abc".into() };
        let fields: Vec<String> = check(&image).into_iter().map(|v| v.field).collect();
        assert_eq!(fields, ["image.file", "image.format", "image.sha256"]);
    }
}
