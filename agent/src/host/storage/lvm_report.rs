//! What `lvs` reports of a volume group.

use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::command::{Tool, failed};
use crate::error::Error;

/// A logical volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Lv {
    pub(super) name: String,
    /// The thin pool in which it lies.
    pub(super) pool: Option<String>,
    /// What it was made from as a snapshot, if that is still there.
    pub(super) origin: Option<String>,
    pub(super) tags: Vec<String>,
    pub(super) size: u64,
    /// Type, permissions and so on, one letter each.
    pub(super) attributes: String,
    pub(super) created: Option<SystemTime>,
    /// The device mapper's path, which does not depend on udev.
    pub(super) device: String,
    /// Size of a thin pool's chunks.
    pub(super) chunk: u64,
    /// How full a thin pool is, in per cent.
    pub(super) data_percent: String,
}

impl Lv {
    fn attribute(&self, at: usize) -> Option<u8> {
        self.attributes.as_bytes().get(at).copied()
    }

    pub(super) fn active(&self) -> bool {
        self.attribute(4) == Some(b'a')
    }

    pub(super) fn is_thin_pool(&self) -> bool {
        self.attribute(0) == Some(b't')
    }

    /// A plain volume: no pool, no snapshot, no part of something.
    pub(super) fn is_linear(&self) -> bool {
        self.attribute(0) == Some(b'-') && self.pool.is_none()
    }

    /// Whether new chunks of a thin pool are overwritten with zeros before they are used.
    pub(super) fn zeroes(&self) -> bool {
        self.attribute(7) == Some(b'z')
    }

    /// Whether a thin pool takes no more data.
    pub(super) fn out_of_space(&self) -> bool {
        self.attribute(8) == Some(b'D') || self.data_percent.parse::<f64>().is_ok_and(|p| p >= 100.0)
    }
}

#[derive(Deserialize)]
struct Report {
    report: Vec<Section>,
}

#[derive(Deserialize)]
struct Section {
    lv: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    lv_name: String,
    pool_lv: String,
    origin: String,
    lv_tags: String,
    lv_size: String,
    lv_attr: String,
    lv_time: String,
    lv_dm_path: String,
    chunk_size: String,
    data_percent: String,
}

impl From<Row> for Lv {
    fn from(row: Row) -> Self {
        let some = |text: String| (!text.is_empty()).then_some(text);
        let created = row.lv_time.split('.').next().and_then(|t| t.parse().ok());
        Self {
            name: row.lv_name,
            pool: some(row.pool_lv),
            origin: some(row.origin),
            tags: row.lv_tags.split(',').filter(|t| !t.is_empty()).map(str::to_owned).collect(),
            size: row.lv_size.parse().unwrap_or_default(),
            attributes: row.lv_attr,
            created: created.and_then(|s| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(s))),
            device: row.lv_dm_path,
            chunk: row.chunk_size.parse().unwrap_or_default(),
            data_percent: row.data_percent,
        }
    }
}

/// All volumes of a group. Errors: `StorageOffline` where the group is not there.
pub(super) async fn list(storage: &str, group: &str) -> Result<Vec<Lv>, Error> {
    const FIELDS: &str = "lv_name,pool_lv,origin,lv_tags,lv_size,lv_attr,lv_time,lv_dm_path,chunk_size,data_percent";
    let tool = Tool::new(storage, "lvs").args(["--reportformat", "json", "--units", "b", "--nosuffix", "--config"]);
    // Newer versions put complaints into the report otherwise, where nobody looks for them.
    let text = tool.args(["report/time_format=\"%s\" log/report_command_log=0", "-o", FIELDS, "--", group]).read().await?;
    parse(&text).map_err(|e| failed(storage, format!("lvs told what cannot be read: {e}")))
}

fn parse(text: &str) -> Result<Vec<Lv>, serde_json::Error> {
    let report: Report = serde_json::from_str(text)?;
    Ok(report.report.into_iter().flat_map(|section| section.lv).map(Lv::from).collect())
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    pub(in crate::host::storage) const REPORT: &str = r#"{ "report": [ { "lv": [
        {"lv_name":"data", "pool_lv":"", "origin":"", "lv_tags":"", "lv_size":"1073741824", "lv_attr":"twi-aotz--", "lv_time":"1764000000",
         "lv_dm_path":"/dev/mapper/pve-data", "chunk_size":"65536", "data_percent":"12.50"},
        {"lv_name":"vm-100-a", "pool_lv":"data", "origin":"", "lv_tags":"pvelet:x,pve-vm-100", "lv_size":"4194304", "lv_attr":"Vwi-aotz--",
         "lv_time":"1764000001", "lv_dm_path":"/dev/mapper/pve-vm--100--a", "chunk_size":"0", "data_percent":"0.00"},
        {"lv_name":"root", "pool_lv":"", "origin":"", "lv_tags":"", "lv_size":"8388608", "lv_attr":"-wi-------", "lv_time":"",
         "lv_dm_path":"/dev/mapper/pve-root", "chunk_size":"0", "data_percent":""}
    ] } ] , "log": [] }"#;

    #[test]
    fn a_report_is_read() {
        let lvs = parse(REPORT).unwrap();
        assert!(lvs[0].is_thin_pool() && lvs[0].zeroes() && lvs[0].active() && !lvs[0].out_of_space() && lvs[0].chunk == 65536);
        assert_eq!((lvs[1].pool.as_deref(), lvs[1].size, lvs[1].origin.as_deref()), (Some("data"), 4 << 20, None));
        assert_eq!(lvs[1].tags, ["pvelet:x", "pve-vm-100"]);
        assert_eq!(lvs[1].created, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_764_000_001)));
        assert!(lvs[2].is_linear() && !lvs[2].active() && lvs[2].created.is_none() && !lvs[1].is_linear());
        assert!(parse("{}").is_err() && parse("").is_err());
    }

    #[test]
    fn a_pool_without_space_is_seen() {
        let pool = |attributes: &str, percent: &str| Lv { attributes: attributes.into(), data_percent: percent.into(), ..Lv::default() };
        assert!(pool("twi-aotzD-", "100.00").out_of_space() && pool("twi-aotz--", "100.00").out_of_space());
        assert!(!pool("twi-aotz--", "99.99").out_of_space() && !pool("twi-aot---", "").out_of_space());
    }
}
