#![allow(clippy::unwrap_used)]

use tracing_subscriber::layer::SubscriberExt as _;

use super::format::Line;
use super::*;

fn line(fields: Vec<(&'static str, serde_json::Value)>) -> Line<'static> {
    let time = "2026-02-03T04:05:06.78+00:00[UTC]".parse().unwrap();
    Line { time, level: LogLevel::Warn, message: "It is so", source: None, fields }
}

#[test]
fn text_as_logrus() {
    let fields = vec![
        ("spiffe_id", "spiffe://a/b".into()),
        ("count", 3.into()),
        ("empty", "".into()),
        ("plain", "a-._/@^+9".into()),
        ("quoted", "a b\"\\\n\u{1}é\u{200b}".into()),
        ("level", "x".into()),
    ];
    let want = "time=\"2026-02-03T04:05:06.78Z\" level=warning msg=\"It is so\" count=3 empty= fields.level=x \
                plain=a-._/@^+9 quoted=\"a b\\\"\\\\\\n\\x01é\\u200b\" spiffe_id=\"spiffe://a/b\"\n";
    assert_eq!(line(fields).render(LogFormat::Text), want);
    let seconds = "time=\"2026-02-03T04:05:06Z\" level=warning msg=\"It is so\"\n";
    assert_eq!(line(Vec::new()).render(LogFormat::Plain), seconds);
    let with_source =
        Line { source: Some(("svid".into(), "a.rs:7".into())), ..line(vec![("file", "f".into())]) };
    let want = "time=\"2026-02-03T04:05:06.78Z\" level=warning msg=\"It is so\" func=svid file=\"a.rs:7\" fields.file=f\n";
    assert_eq!(with_source.render(LogFormat::Text), want);
}

#[test]
fn json_as_logrus() {
    let fields = vec![("z", true.into()), ("a", "<x>".into()), ("msg", 1.into())];
    let want = "{\"a\":\"\\u003cx\\u003e\",\"fields.msg\":1,\"level\":\"warning\",\"msg\":\"It is so\",\
                \"time\":\"2026-02-03T04:05:06.78Z\",\"z\":true}\n";
    assert_eq!(line(fields).render(LogFormat::Json), want);
}

#[test]
fn levels() {
    for (text, level) in [("WARN", LogLevel::Warn), ("warning", LogLevel::Warn), ("Info", LogLevel::Info)] {
        assert_eq!(text.parse::<LogLevel>().unwrap(), level);
    }
    assert_eq!("loud".parse::<LogLevel>().unwrap_err().to_string(), "not a valid logrus Level: \"loud\"");
}

#[test]
fn values_have_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let (layer, _control) = layer(&LogOptions { file: Some(path.clone()), ..LogOptions::default() }).unwrap();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
        let long = "\u{e9}".repeat(1 << 20);
        tracing::error!(shown = %long, text = long.as_str(), "{long}");
    });
    let written = std::fs::read_to_string(path).unwrap();
    assert!(written.len() < 100 * 1024, "{}", written.len());
    assert_eq!(written.matches("... (2097152 bytes)").count(), 3);
}

#[test]
fn spans_levels_and_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let options = LogOptions { file: Some(path.clone()), ..LogOptions::default() };
    let (layer, control) = layer(&options).unwrap();
    let subscriber = tracing_subscriber::registry().with(layer);
    tracing::subscriber::with_default(subscriber, || {
        let outer = tracing::info_span!("request", subsystem_name = "api", request_id = 1).entered();
        tracing::info!(request_id = 2, "One");
        drop(outer);
        tracing::debug!("Hidden");
        control.set_level(LogLevel::Debug);
        tracing::debug!("Shown");
        control.reset_level();
        tracing::info!(target: "h2", "Other crate");
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        control.reopen().unwrap();
        tracing::error!("After");
    });
    assert_eq!(control.level(), control.launch_level());
    let old = std::fs::read_to_string(dir.path().join("old")).unwrap();
    assert!(old.contains("level=info msg=One request_id=2 subsystem_name=api\n"), "{old}");
    assert!(old.contains("level=debug msg=Shown\n"), "{old}");
    assert!(!old.contains("Hidden") && !old.contains("Other"), "{old}");
    let new = std::fs::read_to_string(&path).unwrap();
    assert!(new.contains("level=error msg=After\n"), "{new}");
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap());
    assert_eq!(mode & 0o137, 0, "{mode:o}");
}
