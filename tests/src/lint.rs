//! What strict readers say of certificates: pkilint, and `openssl verify -x509_strict`.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use x509_parser::pem::Pem;

use crate::process::run_at;

/// A finding that stands, because SPIRE's certificates have the same shape.
struct Waiver {
    code: &'static str,
    /// What its text has to hold, too.
    text: &'static str,
}

const WAIVERS: [Waiver; 2] = [
    // pkilint wants a host name in every URI; a trust domain is none.
    Waiver { code: "pkix.invalid_uri_syntax", text: "spiffe://" },
    // Key encipherment on EC keys, which SPIRE sets on every leaf.
    Waiver { code: "pkix.key_usage_value_prohibited_for_ec", text: "keyEncipherment" },
];

/// pkilint, if `./test` brought it. Prints what is left out otherwise.
pub fn pkilint() -> Option<PathBuf> {
    let path = std::env::var_os("SVID_TEST_PKILINT").map(PathBuf::from);
    if path.is_none() {
        println!("skipped: pkilint; run ./test without --quick");
    }
    path
}

/// Lints every certificate of a chain, leaf first, and verifies its first to `roots`, all in DER.
pub async fn check_chain(chain: &[Vec<u8>], roots: &[Vec<u8>]) {
    let dir = TempDir::with_prefix("svid-lint-").expect("temporary directory");
    verify_strictly(dir.path(), chain, roots).await;
    let Some(pkilint) = pkilint() else { return };
    for (at, der) in chain.iter().chain(roots).enumerate() {
        let file = write(dir.path(), &format!("lint-{at}.pem"), std::slice::from_ref(der));
        let findings = findings(&pkilint, &file).await;
        assert!(findings.is_empty(), "certificate {at}: {findings:#?}\n{}", pem(std::slice::from_ref(der)));
    }
}

/// As [`check_chain`], for PEM texts.
pub async fn check_pem(chain: &str, roots: &str) {
    check_chain(&ders(chain), &ders(roots)).await;
}

/// The certificates of a PEM text, in DER.
pub fn ders(text: &str) -> Vec<Vec<u8>> {
    Pem::iter_from_buffer(text.as_bytes()).map(|block| block.expect("PEM").contents).collect()
}

async fn verify_strictly(dir: &Path, chain: &[Vec<u8>], roots: &[Vec<u8>]) {
    let (leaf, rest) = chain.split_first().expect("a chain");
    let roots = write(dir, "roots.pem", roots).display().to_string();
    let leaf = write(dir, "leaf.pem", std::slice::from_ref(leaf)).display().to_string();
    let rest_file = write(dir, "rest.pem", rest).display().to_string();
    let mut args = vec!["verify", "-x509_strict", "-CAfile", &roots];
    if !rest.is_empty() {
        args.extend(["-untrusted", &rest_file]);
    }
    args.push(&leaf);
    run_at(Path::new("openssl"), &args).await.ok();
}

/// What pkilint finds, of severity ERROR or worse and not waived.
async fn findings(pkilint: &Path, cert: &Path) -> Vec<String> {
    let args = ["lint", "-s", "ERROR", "-f", "JSON", &cert.display().to_string()];
    let out = run_at(pkilint, &args).await;
    let said: serde_json::Value = serde_json::from_str(&out.stdout)
        .unwrap_or_else(|error| panic!("pkilint: {error}: {}{}", out.stdout, out.stderr));
    let results = said["results"].as_array().expect("results").iter();
    let all = results.flat_map(|result| result["finding_descriptions"].as_array().expect("findings").iter());
    all.filter(|finding| !is_waived(finding)).map(ToString::to_string).collect()
}

fn is_waived(finding: &serde_json::Value) -> bool {
    let (code, text) = (finding["code"].as_str(), finding["message"].as_str());
    let (code, text) = (code.unwrap_or_default(), text.unwrap_or_default());
    WAIVERS.iter().any(|waiver| code == waiver.code && text.contains(waiver.text))
}

fn write(dir: &Path, name: &str, ders: &[Vec<u8>]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, pem(ders)).expect("write certificates");
    path
}

/// Certificates in DER as PEM.
pub fn pem(ders: &[Vec<u8>]) -> String {
    use base64::Engine as _;
    let block = |der: &Vec<u8>| {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        let lines: Vec<&str> =
            text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ascii")).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    };
    ders.iter().map(block).collect()
}
