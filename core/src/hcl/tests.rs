#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn get<'a>(body: &'a Body, path: &[&str]) -> &'a Kind {
    let item = body.items.iter().rev().find(|item| item.key == path[0]).unwrap();
    let keys: Vec<_> = item.labels.iter().map(String::as_str).collect();
    let rest = path[1..].strip_prefix(keys.as_slice()).unwrap();
    match (&item.value.kind, rest) {
        (kind, []) => kind,
        (Kind::Object(inner), rest) => get(inner, rest),
        (other, rest) => panic!("{other:?} has no {rest:?}"),
    }
}

fn string(text: &str) -> Kind {
    Kind::String(text.into())
}

#[test]
fn values() {
    let check = |text: &str, want: Kind| assert_eq!(get(&parse(text).unwrap(), &["a"]), &want, "{text}");
    check("a = 1", Kind::Int(1));
    check("a=-7", Kind::Int(-7));
    check("a = 0x1F", Kind::Int(31));
    check("a = 0x1e", Kind::Int(30));
    check("a = 0644", Kind::Int(420));
    check("a = 1.5", Kind::Float(1.5));
    check("a = 0.5", Kind::Float(0.5));
    check("a = 1e3", Kind::Float(1000.0));
    check("a = 2E-1", Kind::Float(0.2));
    check("a = true # c", Kind::Bool(true));
    check("a = false // c", Kind::Bool(false));
    check("/* c\n */ a /* d */ = \"x\"", string("x"));
    check(r#""a" = "q\"\\\n\t\u00e9\x41\101""#, string("q\"\\\n\té\x41A"));
    check(r#"a = "${x "y" {z}}!""#, string(r#"${x "y" {z}}!"#));
    check("a = <<EOF\n  one\ntwo\nEOF\n", string("  one\ntwo\n"));
    check("a = <<-EOF\n    one\n      two\n    EOF\n", string("one\n  two\n"));
    check("a = <<-EOF\n one\n    EOF\n", string(" one\n"));
    check("a = <<EOF\nEOF", string(""));
    check("a = []", Kind::List(vec![]));
    check("a = [1, \"b\",]", {
        Kind::List(vec![Value { line: 1, kind: Kind::Int(1) }, Value { line: 1, kind: string("b") }])
    });
    check("a {}", Kind::Object(Body::default()));
    check("a = {}", Kind::Object(Body::default()));
}

#[test]
fn structure() {
    let body =
        parse("a { b = 1 c = 2, d = 3 }\n\"Type\" \"name\" { x { y = \"z\" } }\nk.e-y = 1, l = 2").unwrap();
    assert_eq!(get(&body, &["a", "c"]), &Kind::Int(2));
    assert_eq!(get(&body, &["a", "d"]), &Kind::Int(3));
    assert_eq!(get(&body, &["Type", "name", "x", "y"]), &string("z"));
    assert_eq!(get(&body, &["k.e-y"]), &Kind::Int(1));
    assert_eq!(body.items[1].line, 2);
    assert_eq!(get(&body, &["l"]), &Kind::Int(2));
}

#[test]
fn json() {
    let body = parse("\n{\"a\": {\"b\": [1, {\"c\": null, \"d\": \"\\ud83d\\ude00\\/${\"}]},\n \"e\": 0.5}")
        .unwrap();
    let Kind::List(list) = get(&body, &["a", "b"]) else { panic!() };
    let Kind::Object(inner) = &list[1].kind else { panic!() };
    assert_eq!(inner.items.len(), 1);
    assert_eq!(inner.items[0].value.kind, string("😀/${"));
    assert_eq!(body.items[1].line, 3);
    for bad in ["{", "{\"a\": 1,}", "{\"a\" = 1}", "{a: 1}", "{\"a\": 1} x", "{\"a\": 1 \"b\": 2}", "{# c\n}"]
    {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn mistakes_have_places() {
    for (text, line, column, words) in [
        ("a = ", 1, 5, "expected a value"),
        ("a = b", 1, 5, "strings need quotes"),
        ("x = 1\n  a \"b\" = 1", 2, 9, "`{` after a key with labels"),
        ("a = \"x\ny\"", 1, 5, "not terminated"),
        ("a {\n b = 1\n", 3, 1, "the end of the file"),
        ("}", 1, 1, "expected a key"),
        ("a = 08", 1, 5, "bad octal number"),
        ("a = 0xg", 1, 5, "bad hexadecimal number"),
        ("a = -", 1, 5, "number was expected"),
        ("a = 99999999999999999999", 1, 5, "bad number"),
        ("a = <<EOF\nx", 1, 5, "heredoc not terminated"),
        ("a = <x", 1, 5, "second `<`"),
        ("/* x", 1, 1, "comment not terminated"),
        ("a = [1 2]", 1, 8, "`,` or `]`"),
        ("a = \"\\q\"", 1, 6, "unknown escape"),
        ("a ; b", 1, 3, "unexpected character ';'"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.message.contains(words), "{text}: {error}");
        assert_eq!((error.line, error.column), (line, column), "{text}: {error}");
    }
}

#[test]
fn limits() {
    let nested =
        |open: &str, close: &str, n: usize| parse(&format!("a = {}{}", open.repeat(n), close.repeat(n)));
    assert!(nested("[", "]", MAX_DEPTH).is_ok());
    assert!(nested("[", "]", MAX_DEPTH + 1).unwrap_err().message.contains("nested deeper"));
    assert!(nested("[", "]", 400_000).is_err());
    assert!(parse(&"a {".repeat(100_000)).is_err());
    assert!(parse(&format!("{} {{}}", "a ".repeat(100_000))).is_err());
    assert!(parse(&" ".repeat(MAX_INPUT)).is_ok());
    assert!(parse(&" ".repeat(MAX_INPUT + 1)).unwrap_err().message.contains("limit"));
}

const SAMPLE: &str = r#"
server {
    bind_address = "0.0.0.0"
    Bind_Port = "8081"
    trust_domain = "example.org"
    ttl = "1h"
    ids = "one"
    ids = ["two", 3]
    flag = "TRUE"
    limits { a = false }
    limits { b = 0 }
    colour = 1
}
server { data_dir = "d" }
plugins {
    DataStore "sql" { plugin_data { database_type = "sqlite3" } }
    KeyManager { "disk" { plugin_data { keys_path = "k" } } "memory" = {} }
    NodeAttestor = { "x" = { enabled = false } }
}
federates { "a.org" { n = 1 } }
federates "b.org" { n = 2 }
wrong = 1
"#;

#[test]
fn decodes_as_hcl_1_does() {
    let body = parse(SAMPLE).unwrap();
    let (plugins, report) = decode(&body, |r| {
        r.block("server", |r| {
            assert_eq!(r.string("bind_address").as_deref(), Some("0.0.0.0"));
            assert_eq!(r.port("bind_port"), Some(8081));
            assert_eq!(r.string("trust_domain").as_deref(), Some("example.org"));
            assert_eq!(r.duration("ttl"), Some(std::time::Duration::from_secs(3600)));
            assert_eq!(r.strings("ids").unwrap(), ["one", "two", "3"]);
            assert_eq!(r.bool("flag"), Some(true));
            assert_eq!(r.string("data_dir").as_deref(), Some("d"));
            assert_eq!(r.string("absent"), None);
            r.block("limits", |r| {
                assert_eq!(r.bool("a"), Some(false));
                assert_eq!(r.bool("b"), Some(false));
                r.finish(Unknown::Refuse);
            });
            r.finish(Unknown::Refuse);
        });
        let federated = r.blocks_labelled("federates", |label, r| (label.to_owned(), r.int("n")));
        assert_eq!(federated, [("a.org".to_owned(), Some(1)), ("b.org".to_owned(), Some(2))]);
        let plugins = r.blocks_labelled_twice("plugins", |kind, name, r| {
            r.bool("enabled");
            (kind.to_owned(), name.to_owned(), r.raw("plugin_data").is_some())
        });
        r.finish(Unknown::Warn);
        plugins
    });
    let expected = [
        ("DataStore", "sql", true),
        ("KeyManager", "disk", true),
        ("KeyManager", "memory", false),
        ("NodeAttestor", "x", false),
    ];
    assert_eq!(plugins, expected.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c)));
    let errors: Vec<_> = report.errors.iter().map(ToString::to_string).collect();
    assert_eq!(errors, ["line 12: server.colour: unknown configuration key"]);
    let warnings: Vec<_> = report.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings, ["line 22: wrong: unknown configuration key"]);
}

#[test]
fn all_mistakes_at_once() {
    let body =
        parse("a = []\nb = \"maybe\"\nc = \"1 hour\"\nd = 70000\ne = \"x\"\nf = [true]\ng = 1\nh { i = 2 }")
            .unwrap();
    let ((), report) = decode(&body, |r| {
        r.string("a");
        r.bool("b");
        r.duration("c");
        r.port("d");
        r.int("e");
        r.strings("f");
        r.block("g", |_| ());
        r.blocks_labelled("h", |_, _| ());
        r.finish(Unknown::Refuse);
    });
    let lines: Vec<_> = report.errors.iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [1, 2, 3, 4, 5, 6, 7, 8], "{:#?}", report.errors);
}

fn strip_lines(body: &Body) -> Body {
    let strip = |value: &Value| {
        fn inner(value: &Value) -> Value {
            let kind = match &value.kind {
                Kind::List(values) => Kind::List(values.iter().map(inner).collect()),
                Kind::Object(body) => Kind::Object(strip_lines(body)),
                other => other.clone(),
            };
            Value { line: 0, kind }
        }
        inner(value)
    };
    let items = body.items.iter();
    Body { items: items.map(|item| Item { value: strip(&item.value), line: 0, ..item.clone() }).collect() }
}

#[test]
fn prints_what_it_reads() {
    let text =
        "a = \"q\\\"\\\\ \\u007b $\\u007bx\"\n\"b\" \"c\" { d = [1, 2.5, {e = true}] f = <<X\nl1\nl2\nX\n}\n";
    let body = parse(text).unwrap();
    let again = parse(&body.to_string()).unwrap();
    assert_eq!(strip_lines(&again), strip_lines(&body));
}

proptest! {
    #[test]
    fn never_panics(text in ".{0,200}") {
        let _ = parse(&text);
        let _ = expand_env(&text);
        let _ = duration::parse_go(&text);
    }

    #[test]
    fn never_panics_on_likely_text(parts in proptest::collection::vec(
        prop::sample::select(vec![
            "a", "=", "{", "}", "[", "]", ",", "\"", "\\", "${", "<<", "<<-E\n", "E", "\n", "0x", "08", "1.", "e",
            "-", "#", "//", "/*", "*/", ":", "null", "true", " ", "\\u", "d800", "é", "\r", ".",
        ]), 0..40)) {
        if let Ok(body) = parse(&parts.concat()) {
            let again = parse(&body.to_string());
            prop_assert_eq!(again.map(|body| strip_lines(&body)), Ok(strip_lines(&body)));
        }
    }
}
