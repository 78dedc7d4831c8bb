use svid_core::hcl::{self, Report, decode};

use super::*;

fn read(text: &str, env: &[(&str, &str)]) -> (Option<Connection>, Report) {
    let body = hcl::parse(text).unwrap();
    let env = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    decode(&body, |r| {
        let read = Connection::read(r, &env);
        r.finish(Unknown::Refuse);
        read
    })
}

#[track_caller]
fn good(text: &str, env: &[(&str, &str)]) -> Connection {
    let (read, report) = read(text, env);
    assert_eq!(report.errors, [], "{text}");
    read.unwrap()
}

#[track_caller]
fn refused(text: &str, env: &[(&str, &str)], want: &[&str]) {
    let (_, report) = read(text, env);
    let said: Vec<String> = report.errors.iter().map(ToString::to_string).collect();
    let said = said.join("\n");
    assert!(!said.is_empty(), "{text} was taken");
    for text in want {
        assert!(said.contains(text), "{said}\n lacks {text}");
    }
}

const ADDRESS: (&str, &str) = ("VAULT_ADDR", "https://vault.example.org:8200/");

#[test]
fn each_method_with_its_defaults() {
    let token = good("token_auth { token = \"t\\n\" }", &[ADDRESS]);
    assert_eq!(token.address, "https://vault.example.org:8200");
    assert_eq!(token.auth, Auth::Token { token: Secret::new("t".into()) });
    assert_eq!((token.namespace, token.ca_cert_path, token.insecure_skip_verify), (None, None, false));
    let approle = good("approle_auth { approle_id = \"r\" approle_secret_id = \"s\" }", &[ADDRESS]);
    let secret_id = Secret::new("s".into());
    assert_eq!(approle.auth, Auth::AppRole { mount: "approle".into(), role_id: "r".into(), secret_id });
    let cert = good("cert_auth { client_cert_path = \"c\" client_key_path = \"k\" }", &[ADDRESS]);
    let (cert_path, key_path) = ("c".into(), "k".into());
    assert_eq!(cert.auth, Auth::Cert { mount: "cert".into(), role: String::new(), cert_path, key_path });
    let k8s = good("k8s_auth { k8s_auth_role_name = \"r\" token_path = \"/t\" }", &[ADDRESS]);
    let token_path = "/t".into();
    assert_eq!(k8s.auth, Auth::Kubernetes { mount: "kubernetes".into(), role: "r".into(), token_path });
}

#[test]
fn the_environment_counts_more_than_the_file() {
    let text = r#"vault_addr = "http://file:1" namespace = "file" ca_cert_path = "file" token_auth { token = "file" }"#;
    let file = good(text, &[]);
    assert_eq!((file.address.as_str(), file.namespace.as_deref()), ("http://file:1", Some("file")));
    let env = [
        ("VAULT_ADDR", "http://env:1"),
        ("VAULT_NAMESPACE", ""),
        ("VAULT_CACERT", "env"),
        ("VAULT_TOKEN", "env"),
    ];
    let read = good(text, &env);
    assert_eq!((read.address.as_str(), read.namespace), ("http://env:1", None));
    assert_eq!(
        (read.ca_cert_path, read.auth),
        (Some("env".into()), Auth::Token { token: Secret::new("env".into()) })
    );
    let bao = good(text, &[("VAULT_ADDR", "http://env:1"), ("BAO_ADDR", "http://bao:1")]);
    assert_eq!(bao.address, "http://bao:1");
    let ids = [ADDRESS, ("VAULT_APPROLE_ID", "r"), ("VAULT_APPROLE_SECRET_ID", "s")];
    assert!(matches!(good("approle_auth {}", &ids).auth, Auth::AppRole { .. }));
    let files = [ADDRESS, ("VAULT_CLIENT_CERT", "c"), ("VAULT_CLIENT_KEY", "k")];
    assert!(matches!(good("cert_auth {}", &files).auth, Auth::Cert { .. }));
}

#[test]
fn mistakes_name_key_found_and_expected() {
    refused("token_auth { token = \"t\" }", &[], &["vault_addr", "found nothing", "VAULT_ADDR"]);
    refused(
        "token_auth { token = \"t\" }",
        &[("VAULT_ADDR", "")],
        &["VAULT_ADDR is set and empty", "unset it"],
    );
    for (address, want) in [
        ("vault:8200", "another scheme"),
        ("nonsense", "no URL"),
        ("https://me:hush@vault", "user name or password"),
        ("https://vault/?x=1", "query"),
    ] {
        refused("token_auth { token = \"t\" }", &[("VAULT_ADDR", address)], &["vault_addr", want]);
    }
    refused("", &[ADDRESS], &["must be configured one of these authentication method", "found none"]);
    refused(
        "token_auth { token = \"t\" }\napprole_auth { approle_id = \"r\" approle_secret_id = \"s\" }",
        &[ADDRESS],
        &["line 2", "only one authentication method can be configured", "token_auth and approle_auth"],
    );
    refused("token_auth {}", &[ADDRESS], &["token_auth.token", "token is required", "VAULT_TOKEN"]);
    refused("approle_auth {}", &[ADDRESS], &["approle_id is required", "approle_secret_id is required"]);
    refused("cert_auth { client_cert_path = \"c\" }", &[ADDRESS], &["client_key_path is required"]);
    refused("k8s_auth {}", &[ADDRESS], &["k8s_auth_role_name is required", "token_path is required"]);
    refused("token_auth { tokn = \"t\" }", &[ADDRESS], &["token_auth.tokn", "unknown configuration key"]);
    refused(
        "cert_auth { cert_auth_mount_point = \"a/../b\" client_cert_path = \"c\" client_key_path = \"k\" }",
        &[ADDRESS],
        &["cert_auth_mount_point", "a/../b"],
    );
    refused("namespace = \"a b\"\ntoken_auth { token = \"t\" }", &[ADDRESS], &["namespace", "\"a b\""]);
}

#[test]
fn secrets_are_in_no_text() {
    let env = [("VAULT_ADDR", "https://me:hush@vault"), ("VAULT_TOKEN", "hu sh")];
    let (_, report) = read("token_auth {}", &env);
    assert!(
        !format!("{report:?}").contains("hush") && !format!("{report:?}").contains("hu sh"),
        "{report:?}"
    );
    let connection = good("approle_auth { approle_id = \"r\" approle_secret_id = \"hush\" }", &[ADDRESS]);
    assert!(!format!("{connection:?}").contains("hush"));
}

#[test]
fn what_is_dangerous_is_warned_of() {
    let warned = |address: &str, more: &str| {
        let text = format!("{more} token_auth {{ token = \"t\" }}");
        !read(&text, &[("VAULT_ADDR", address)]).1.warnings.is_empty()
    };
    assert!(warned("http://vault.example.org", ""));
    assert!(warned("https://vault.example.org", "insecure_skip_verify = true"));
    for safe in
        ["https://vault.example.org", "http://localhost:1", "http://127.0.0.1:8200", "http://[::1]:8200/x"]
    {
        assert!(!warned(safe, ""), "{safe}");
    }
}
