//! Manifests: how a component lies in a registry. Two layouts are in use, and a third names the artifact itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::digest::Digest;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
/// What `Accept` lists. Indexes too: a clear word about one is better than the registry's 404.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.artifact.manifest.v1+json, application/vnd.oci.image.index.v1+json;q=0.1, application/vnd.docker.distribution.manifest.list.v2+json;q=0.1";

const WASM: &str = "application/wasm";
const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
const OLDER_LAYER: &str = "application/vnd.wasm.content.layer.v1+wasm";
const OLDER_CONFIG: &str = "application/vnd.wasm.config.v1+json";
const EMPTY_CONFIG: &str = "application/vnd.oci.empty.v1+json";
/// Layers that are a component, whoever pushed them.
const COMPONENT_LAYERS: [&str; 3] =
    [WASM, OLDER_LAYER, "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm"];

/// How a component is laid out when it is pushed. All of them are pulled.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Layout {
    /// The Wasm OCI artifact of the CNCF: configuration `application/vnd.wasm.config.v0+json`, a layer `application/wasm`.
    #[default]
    Wasm,
    /// The one before it: a layer `application/vnd.wasm.content.layer.v1+wasm`.
    Older,
    /// `artifactType` and an empty configuration (OCI image spec 1.1, "Guidelines for Artifact Usage").
    Artifact,
}

/// Where some bytes are, and what they are.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub(crate) fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            annotations: BTreeMap::new(),
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    /// An artifact manifest of the release candidates of OCI 1.1 has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) config: Option<Descriptor>,
    /// That one called them blobs.
    #[serde(default, alias = "blobs")]
    pub(crate) layers: Vec<Descriptor>,
}

impl Manifest {
    pub(crate) fn new(config: Descriptor, layers: Vec<Descriptor>) -> Self {
        let media_type = Some(OCI_MANIFEST.to_owned());
        Self { schema_version: 2, media_type, artifact_type: None, config: Some(config), layers }
    }

    /// A component in a layout: the manifest, and the bytes of its configuration. The same bytes give the same digest
    /// whenever and by whomever they are pushed, so that a signature stays good.
    pub(crate) fn of_component(layout: Layout, component: &[u8]) -> (Self, Vec<u8>) {
        let digest = Digest::of(component);
        let config = match layout {
            Layout::Wasm => json!({
                "created": "1970-01-01T00:00:00Z", "architecture": "wasm", "os": "wasip2", "layerDigests": [digest],
            }),
            Layout::Older | Layout::Artifact => json!({}),
        };
        let config = config.to_string().into_bytes();
        let (config_type, layer_type) = match layout {
            Layout::Wasm => (WASM_CONFIG, WASM),
            Layout::Older => (OLDER_CONFIG, OLDER_LAYER),
            Layout::Artifact => (EMPTY_CONFIG, WASM),
        };
        let layer = Descriptor::of(layer_type, component);
        let mut manifest = Self::new(Descriptor::of(config_type, &config), vec![layer]);
        manifest.artifact_type = (layout == Layout::Artifact).then(|| WASM.to_owned());
        (manifest, config)
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest has text keys only")
    }

    /// What is wrong with a manifest reads after its name.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let value: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|error| format!("is not a manifest: {error}"))?;
        if value.get("manifests").is_some() {
            return Err("is an index of several artifacts; name one of them by its digest".to_owned());
        }
        let manifest: Self = serde_json::from_value(value).map_err(|error| format!("is not a manifest: {error}"))?;
        match manifest.media_type.as_deref() {
            None | Some(OCI_MANIFEST | DOCKER_MANIFEST | OCI_ARTIFACT) => Ok(manifest),
            Some(other) => Err(format!("has the media type {other:?}, which is not a manifest's")),
        }
    }

    /// The one layer that is a component. Others, a licence or a readme, may lie beside it.
    pub(crate) fn component(&self) -> Result<&Descriptor, String> {
        let mut found = self.layers.iter().filter(|layer| COMPONENT_LAYERS.contains(&layer.media_type.as_str()));
        match (found.next(), found.next()) {
            (Some(layer), None) => Ok(layer),
            (Some(_), Some(_)) => Err("has several WebAssembly layers; a plugin is one".to_owned()),
            (None, _) => {
                let types: Vec<&str> = self.layers.iter().map(|layer| layer.media_type.as_str()).collect();
                Err(format!("has no WebAssembly layer ({WASM} or {OLDER_LAYER}), but {types:?}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_reads_back_and_is_the_same_twice() {
        for layout in [Layout::Wasm, Layout::Older, Layout::Artifact] {
            let (manifest, config) = Manifest::of_component(layout, b"component");
            let bytes = manifest.to_bytes();
            assert_eq!(bytes, Manifest::of_component(layout, b"component").0.to_bytes());
            let read = Manifest::parse(&bytes).expect("a manifest");
            assert_eq!(read.component().expect("a layer").digest, Digest::of(b"component"));
            assert_eq!(read.config, manifest.config);
            assert_eq!(read.config.expect("a configuration").digest, Digest::of(&config));
        }
        let (manifest, _) = Manifest::of_component(Layout::Artifact, b"");
        let written: serde_json::Value = serde_json::from_slice(&manifest.to_bytes()).expect("JSON");
        assert_eq!(written["artifactType"], WASM);
        assert_eq!(written["config"]["size"], 2);
    }

    #[test]
    fn layers_of_others_are_passed_over_and_blobs_are_layers() {
        let layer = |kind: &str| json!({ "mediaType": kind, "digest": Digest::of(b""), "size": 0 });
        let manifest = |key: &str, layers: Vec<serde_json::Value>| {
            Manifest::parse(json!({ "schemaVersion": 2, key: layers }).to_string().as_bytes())
        };
        let component =
            |key: &str, layers| manifest(key, layers).expect("a manifest").component().map(|l| l.size).map_err(drop);
        assert_eq!(component("layers", vec![layer("text/markdown"), layer(OLDER_LAYER)]), Ok(0));
        assert_eq!(component("blobs", vec![layer(WASM)]), Ok(0));
        assert_eq!(component("layers", vec![layer(WASM), layer(WASM)]), Err(()));
        assert_eq!(component("layers", vec![layer("application/vnd.oci.image.layer.v1.tar+gzip")]), Err(()));
        let index = json!({ "schemaVersion": 2, "manifests": [] }).to_string();
        assert!(Manifest::parse(index.as_bytes()).expect_err("an index").contains("by its digest"));
        let digest = json!({ "schemaVersion": 2, "layers": [{ "mediaType": WASM, "digest": "md5:1", "size": 0 }] });
        assert!(Manifest::parse(digest.to_string().as_bytes()).expect_err("no digest").contains("md5:1"));
        for junk in ["", "[]", "{}", "null", "{\"schemaVersion\":2,\"mediaType\":\"text/html\"}"] {
            assert!(Manifest::parse(junk.as_bytes()).is_err(), "{junk}");
        }
    }
}
