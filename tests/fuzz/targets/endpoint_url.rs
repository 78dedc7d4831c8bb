//! URLs of bundle endpoints: what was read is written so that it reads the same, and holds nothing that an HTTP request
//! or a log line could trip over.
#![no_main]

use libfuzzer_sys::fuzz_target;
use svid_core::federation::EndpointUrl;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(url) = text.parse::<EndpointUrl>() else { return };
    assert_eq!(url.as_str().parse::<EndpointUrl>().as_ref(), Ok(&url));
    assert!(!url.host().is_empty() && url.port() > 0, "{url}");
    for part in [url.host(), &url.path_and_query(), &url.authority()] {
        assert!(part.bytes().all(|byte| byte.is_ascii_graphic()) && !part.contains('#'), "{part:?}");
    }
    assert!(url.path_and_query().starts_with('/'), "{url}");
    assert!(!url.authority().contains('@') && !url.host().contains('/'), "{url}");
});

svid_fuzz::seeds!("endpoint_url": "name", "address");
