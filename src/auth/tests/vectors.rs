//! Examples of the RFCs: other people's keys and signatures.

use super::super::Keys;
use super::super::forge::rules;
use super::Refusal;
use crate::time::Unix;

/// Of RFC 7515, appendix A: signed, but without `sub`.
const PAYLOAD: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9\
                       pc19yb290Ijp0cnVlfQ";

fn verify(jwk: &str, token: &str) -> Refusal {
    let mut keys = Keys::default();
    keys.add("rfc", jwk.as_bytes()).unwrap();
    let before = Unix::from_ms(1_300_819_379_000);
    rules(keys).verify(token.as_bytes(), before).unwrap_err()
}

/// The claims are judged, so the signature held; and with another letter in it, it does not.
fn holds(jwk: &str, header: &str, payload: &str, signature: &str, refusal: Refusal) {
    let token = format!("{header}.{payload}.{signature}");
    assert_eq!(verify(jwk, &token), refusal);
    let other = if signature.starts_with('a') { "b" } else { "a" };
    let token = format!("{header}.{payload}.{other}{}", &signature[1..]);
    assert_eq!(verify(jwk, &token), Refusal::Signature);
}

#[test]
fn rfc_7515_a_1() {
    holds(
        "{\"kty\":\"oct\",\"k\":\"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0\
         iPS4hcgUuTwjAzZr1Z9CAow\"}",
        "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9",
        PAYLOAD,
        "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
        Refusal::Subject,
    );
}

#[test]
fn rfc_7515_a_2() {
    holds(
        "{\"kty\":\"RSA\",\"n\":\"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQ\
         p-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9w\
         Gzjb_7\
         OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3\
         qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRW\
         yuXpoQ\",\"e\":\"AQAB\"}",
        "eyJhbGciOiJSUzI1NiJ9",
        PAYLOAD,
        "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2\
         Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkS\
         jtQBM\
         Hlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI\
         2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
        Refusal::Subject,
    );
}

#[test]
fn rfc_7515_a_3() {
    holds(
        "{\"kty\":\"EC\",\"crv\":\"P-256\",\"x\":\"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU\",\
         \"y\":\"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0\"}",
        "eyJhbGciOiJFUzI1NiJ9",
        PAYLOAD,
        "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        Refusal::Subject,
    );
}

#[test]
fn rfc_8037_a_4() {
    holds(
        "{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\
         \"x\":\"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"}",
        "eyJhbGciOiJFZERTQSJ9",
        "RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc",
        "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
        Refusal::Claims,
    );
}
