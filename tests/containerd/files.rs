//! containerd's own word on its configuration.

use std::path::Path;

use pvelet_agent::{
    error::{Error, Trouble},
    host::runtime::{ConfigText, ContainerdFiles, RuntimeFiles},
};
use pvelet_tests::containerd::{PAUSE, Place};

use crate::host::LONG;

fn trouble(result: Result<String, Error>) -> (Trouble, String) {
    match result.unwrap_err() {
        Error::Look { trouble, message } => (trouble, message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_real_program_tells_what_it_takes_and_where_it_does_not() {
    let place = Place::new();
    let files = ContainerdFiles::new(place.config(), place.program("containerd"));
    let dump = files.dump(&place.healthy(), LONG).await.unwrap();
    assert!(dump.contains(PAUSE), "{dump}");
    let (what, message) = trouble(files.dump("version = 2\nroot = \"a", LONG).await);
    assert_eq!(what, Trouble::Failed);
    // The copy goes by the name of the file that it stands for.
    assert!(message.contains(&*place.config().to_string_lossy()) && message.contains("(2, "), "{message}");
    assert_eq!(trouble(files.dump("version = 2\nroot = 5", LONG).await).0, Trouble::Failed);
    // 1.6 ends with 0 here, and ignores all that it does not know.
    assert_eq!(trouble(files.dump("version = 99", LONG).await).0, Trouble::Failed);
    assert_eq!(trouble(files.dump("version = 2\nimports = [\"none.toml\"]", LONG).await).0, Trouble::Missing);
    let left: Vec<_> = std::fs::read_dir(place.config().parent().unwrap()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn relative_imports_mean_the_same_to_the_copy_as_to_the_file() {
    let place = Place::new();
    let etc = place.config().parent().unwrap().to_owned();
    std::fs::write(
        etc.join("more.toml"),
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"imported.test/pause:1\"\n",
    )
    .unwrap();
    let text = place.head("imports = [\"more.toml\"]");
    std::fs::write(place.config(), &text).unwrap();
    let files = ContainerdFiles::new(place.config(), place.program("containerd"));
    assert!(files.dump(&text, LONG).await.unwrap().contains("imported.test/pause:1"));
    let read = files.config().await.unwrap();
    assert_eq!(read.iter().map(|f| f.path.clone()).collect::<Vec<_>>(), [place.config(), etc.join("more.toml")]);
}

#[tokio::test]
async fn what_an_import_would_hold_is_tried_in_its_place() {
    in_its_place(Place::new(), 2).await;
}

/// Tries edits of an import, with the main file in this version.
pub(crate) async fn in_its_place(place: Place, version: u32) {
    let import = place.folder().join("etc/conf.d/more.toml");
    std::fs::create_dir(import.parent().unwrap()).unwrap();
    std::fs::write(&import, "oom_score = -1\n").unwrap();
    let main = place.head("imports = [\n  \"conf.d/*.toml\",\n]").replace("version = 2", &format!("version = {version}"));
    std::fs::write(place.config(), &main).unwrap();
    let before = std::fs::read_dir(place.config().parent().unwrap()).unwrap().count();
    let files = ContainerdFiles::new(place.config(), place.program("containerd"));
    let edit = |path: &Path, text: &str| [ConfigText { path: path.to_owned(), text: text.to_owned() }];
    files.try_edits(&edit(&import, "oom_score = -2\n"), LONG).await.unwrap();
    files.try_edits(&edit(&place.config(), &main), LONG).await.unwrap();
    let wrong = "[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = 5\n";
    if version == 2 {
        // As a main file it would do: without a version 1.x passes over such names.
        files.dump(wrong, LONG).await.unwrap();
        let (what, message) = trouble(files.try_edits(&edit(&import, wrong), LONG).await.map(|()| String::new()));
        assert!(what == Trouble::Failed && message.contains("convert 5"), "{message}");
    }
    let (what, message) = trouble(files.try_edits(&edit(&import, "oom_score = [\n"), LONG).await.map(|()| String::new()));
    assert!(what == Trouble::Failed && !message.contains("pvelet-new"), "{message}");
    assert_eq!(std::fs::read_to_string(&import).unwrap(), "oom_score = -1\n");
    assert_eq!(std::fs::read_to_string(place.config()).unwrap(), main);
    assert_eq!(std::fs::read_dir(place.config().parent().unwrap()).unwrap().count(), before, "no copy stays");
}
