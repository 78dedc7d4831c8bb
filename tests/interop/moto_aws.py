"""AWS as the tests see it: moto, made right where it differs from AWS in what this project relies on.

    moto_aws.py serve HOST PORT
    moto_aws.py call URL SERVICE OPERATION JSON     one call of boto3; bytes are base64 in what it prints
    moto_aws.py root URL [TAG=VALUE]                an active root CA; prints its ARN, then its certificate
"""

import base64
import datetime
import json
import re
import sys
import time

REGION = "eu-west-1"
SUBORDINATE = re.compile(r":template/(?:Blank)?SubordinateCACertificate_PathLen(\d)(?:_\w+)?/V1$")


def access_key(response):
    """The access key ID that a request is signed with."""
    found = re.search(r"Credential=([^/]+)/", response.headers.get("Authorization", ""))
    return found.group(1) if found else ""


def private_ca():
    """Subordinate CAs as the templates say, states that count, one certificate for one idempotency token."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from moto.acmpca import exceptions, models, responses
    from moto.core.exceptions import JsonRESTError

    by_token = {}
    response = responses.ACMPCAResponse
    plain_issue = response.issue_certificate

    def admit(self):
        """Credentials named WRONG are unknown; a CA tagged `only` takes access keys that begin with that."""
        key = access_key(self)
        if key == "WRONG":
            raise JsonRESTError("UnrecognizedClientException", "The security token included in the request is invalid.")
        arn = json.loads(self.body).get("CertificateAuthorityArn")
        ca = self.acmpca_backend.describe_certificate_authority(arn)
        tags = {tag["Key"]: tag["Value"] for tag in self.acmpca_backend.list_tags(arn)["Tags"]}
        if not key.startswith(tags.get("only", "")):
            raise JsonRESTError("AccessDeniedException", f"{key} is not authorized to perform this on {arn}")
        return ca

    def end(validity, now):
        if validity["Type"] == "ABSOLUTE":
            return datetime.datetime.fromtimestamp(validity["Value"], datetime.timezone.utc)
        return now + datetime.timedelta(days=validity["Value"])

    def subordinate(ca, params, path_length):
        csr = x509.load_pem_x509_csr(base64.b64decode(params["Csr"]))
        issuer, now = ca.certificate, datetime.datetime.now(datetime.timezone.utc)
        issuer_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        usage = x509.KeyUsage(
            digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(csr.subject)
            .issuer_name(issuer.subject)
            .public_key(csr.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(end(params["Validity"], now))
            .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(csr.public_key()), critical=False)
            .add_extension(usage, critical=True)
        )
        for extension in csr.extensions:
            if isinstance(extension.value, x509.SubjectAlternativeName):
                builder = builder.add_extension(extension.value, critical=extension.critical)
        arn = f"{ca.arn}/certificate/{x509.random_serial_number():032x}"
        signed = builder.sign(ca.key, hashes.SHA256())
        ca.issued_certificates[arn] = signed.public_bytes(serialization.Encoding.PEM)
        ca.issued_certificates_certificate_chains[arn] = ca.certificate_bytes
        return arn

    def issue(self):
        params = json.loads(self.body)
        template = SUBORDINATE.search(params.get("TemplateArn") or "")
        if template is None:
            return plain_issue(self)
        ca = admit(self)
        if ca.status != "ACTIVE":
            raise exceptions.InvalidStateException(ca.arn)
        token = (ca.arn, params.get("IdempotencyToken"))
        if token[1] is None or token not in by_token:
            by_token[token] = subordinate(ca, params, int(template.group(1)))
        return json.dumps({"CertificateArn": by_token[token]})

    plain_describe = response.describe_certificate_authority

    def describe(self):
        admit(self)
        return plain_describe(self)

    response.issue_certificate = issue
    response.describe_certificate_authority = describe


def kms():
    """Digests that are signed as they are, keys that do not sign once they are to be deleted, dates of aliases."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, padding, utils
    from moto.core.exceptions import JsonRESTError
    from moto.kms import models, responses

    response, backend = responses.KmsResponse, models.KmsBackend
    plain_sign, plain_list, plain_delete = response.sign, response.list_aliases, backend.schedule_key_deletion
    plain_set = response._set_alias
    updated = {}

    def sign(self):
        key = self.kms_backend.describe_key(self._get_param("KeyId"))
        if not key.enabled:
            raise JsonRESTError("KMSInvalidStateException", f"{key.arn} is pending deletion.")
        if self._get_param("MessageType") != "DIGEST":
            return plain_sign(self)
        name, digest = self._get_param("SigningAlgorithm"), self._get_param("Message")
        algorithm = {"256": hashes.SHA256, "384": hashes.SHA384, "512": hashes.SHA512}[name[-3:]]()
        private, hashed = key.private_key.private_key, utils.Prehashed(algorithm)
        if name.startswith("ECDSA"):
            signature = private.sign(digest, ec.ECDSA(hashed))
        elif "PSS" in name:
            pss = padding.PSS(padding.MGF1(algorithm), salt_length=algorithm.digest_size)
            signature = private.sign(digest, pss, hashed)
        else:
            signature = private.sign(digest, padding.PKCS1v15(), hashed)
        text = base64.b64encode(signature).decode()
        return json.dumps({"KeyId": key.arn, "Signature": text, "SigningAlgorithm": name})

    def set_alias(self, update=False):
        answer = plain_set(self, update)
        updated[self._get_param("AliasName")] = time.time()
        return answer

    def list_aliases(self):
        if access_key(self) == "WRONG":
            raise JsonRESTError("UnrecognizedClientException", "The security token included in the request is invalid.")
        answer = json.loads(plain_list(self))
        for alias in answer["Aliases"]:
            if alias["AliasName"] in updated:
                alias["LastUpdatedDate"] = updated[alias["AliasName"]]
        return json.dumps(answer)

    def schedule_key_deletion(self, key_id, pending_window_in_days):
        return plain_delete(self, self.any_id_to_key_id(key_id), pending_window_in_days)

    response.sign, response.list_aliases, response._set_alias = sign, list_aliases, set_alias
    backend.schedule_key_deletion = schedule_key_deletion


def client(url, service):
    import boto3

    return boto3.client(
        service, endpoint_url=url, region_name=REGION, aws_access_key_id="operator", aws_secret_access_key="operator"
    )


def call(url, service, operation, params):
    answer = getattr(client(url, service), operation)(**params)
    answer.pop("ResponseMetadata", None)

    def text(value):
        return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)

    print(json.dumps(answer, default=text))


def root(url, tag):
    pca = client(url, "acm-pca")
    tags = [dict(zip(("Key", "Value"), (tag or "for=tests").split("=")))]
    config = {
        "KeyAlgorithm": "RSA_2048",
        "SigningAlgorithm": "SHA256WITHRSA",
        "Subject": {"CommonName": "Root of the tests", "Organization": "Tests"},
    }
    arn = pca.create_certificate_authority(
        CertificateAuthorityConfiguration=config, CertificateAuthorityType="ROOT", Tags=tags
    )["CertificateAuthorityArn"]
    csr = pca.get_certificate_authority_csr(CertificateAuthorityArn=arn)["Csr"]
    certificate = pca.issue_certificate(
        CertificateAuthorityArn=arn,
        Csr=csr.encode(),
        SigningAlgorithm="SHA256WITHRSA",
        TemplateArn="arn:aws:acm-pca:::template/RootCACertificate/V1",
        Validity={"Type": "YEARS", "Value": 10},
    )["CertificateArn"]
    pem = pca.get_certificate(CertificateAuthorityArn=arn, CertificateArn=certificate)["Certificate"]
    pca.import_certificate_authority_certificate(CertificateAuthorityArn=arn, Certificate=pem.encode())
    print(arn)
    print(pem)


def main(arguments):
    match arguments:
        case ["serve", host, port]:
            private_ca()
            kms()
            from moto.server import main as serve

            serve(["-H", host, "-p", port])
        case ["call", url, service, operation, params]:
            call(url, service, operation, json.loads(params))
        case ["root", url, *tag]:
            root(url, tag[0] if tag else None)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
