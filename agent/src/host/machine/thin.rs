//! The thin pools of LVM.

use std::{path::Path, time::Duration};

use serde::Deserialize;

use super::{
    ThinPool, command,
    read::{self, look},
};
use crate::error::{Error, Trouble};

/// Whether the kernel has a thin pool of LVM: the device mapper's device behind it has a name of its own.
pub(super) fn present(sysfs: &Path) -> Result<bool, Error> {
    for name in read::names(&sysfs.join("block"))?.iter().filter(|n| n.starts_with("dm-")) {
        // The device may vanish meanwhile.
        if let Ok(Some(id)) = read::text(&sysfs.join("block").join(name).join("dm/uuid"), 4096)
            && id.starts_with("LVM-")
            && id.trim_end().ends_with("-tpool")
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Asks `lvs` for all thin pools.
pub(super) async fn pools(patience: Duration) -> Result<Vec<ThinPool>, Error> {
    const FIELDS: &str = "vg_name,lv_name,lv_attr,data_percent,metadata_percent,lv_check_needed";
    // Newer versions put complaints into the report otherwise, where nobody looks for them.
    let plain = ["--reportformat", "json", "--units", "b", "--nosuffix", "--config", "log/report_command_log=0"];
    let args: Vec<&str> = plain.into_iter().chain(["--select", "segtype=thin-pool", "-o", FIELDS]).collect();
    let text = command::run("lvs", &args, patience).await?.success("lvs")?;
    parse(&text).map_err(|e| look(Trouble::Garbled, format!("lvs told what cannot be read: {e}")))
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
    vg_name: String,
    lv_name: String,
    lv_attr: String,
    data_percent: String,
    metadata_percent: String,
    #[serde(default)]
    lv_check_needed: String,
}

fn parse(text: &str) -> Result<Vec<ThinPool>, serde_json::Error> {
    let report: Report = serde_json::from_str(text)?;
    let percent = |text: &str| text.parse::<f64>().ok().filter(|p| p.is_finite());
    let pool = |row: Row| ThinPool {
        name: format!("{}/{}", row.vg_name, row.lv_name),
        data: percent(&row.data_percent),
        metadata: percent(&row.metadata_percent),
        check_needed: matches!(row.lv_check_needed.as_str(), "1" | "check needed"),
        attributes: row.lv_attr,
    };
    Ok(report.report.into_iter().flat_map(|s| s.lv).map(pool).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pools_are_read() {
        let text = r#"{"report": [{"lv": [
            {"vg_name":"pve", "lv_name":"data", "lv_attr":"twi-aotz--", "data_percent":"12.50", "metadata_percent":"96.10", "lv_check_needed":""},
            {"vg_name":"x", "lv_name":"t", "lv_attr":"twi-XXtzM-", "data_percent":"", "metadata_percent":"", "lv_check_needed":"check needed"}
        ]}], "log": []}"#;
        let pools = parse(text).unwrap();
        assert_eq!((pools[0].name.as_str(), pools[0].data, pools[0].metadata), ("pve/data", Some(12.5), Some(96.1)));
        assert!(!pools[0].check_needed && pools[1].check_needed);
        assert_eq!((pools[1].data, pools[1].metadata), (None, None));
        assert_eq!(parse(r#"{"report":[{"lv":[]}]}"#).unwrap(), []);
        assert!(parse("{}").is_err() && parse("").is_err());
    }

    #[test]
    fn a_thin_pool_is_seen_in_sysfs() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!present(dir.path()).unwrap());
        let device = |name: &str, id: &str| {
            let folder = dir.path().join("block").join(name).join("dm");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("uuid"), id).unwrap();
        };
        device("dm-0", "LVM-abc\n");
        device("dm-1", "CRYPT-LUKS2-x-tpool\n");
        assert!(!present(dir.path()).unwrap());
        device("dm-2", "LVM-abc-tpool\n");
        assert!(present(dir.path()).unwrap());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC*") {
            let _ = parse(&text);
        }
    }
}
