"""Texts with what is to be found in them marked, ``⟦KIND:what⟧``, and hard ones with nothing in them.

Written for `test_redaction`; names, numbers and keys are made up, those that have a checksum with a right one.
"""

POSITIVES = """
Write to ⟦EMAIL:anna.schmidt@example.com⟧, please.
My mail is ⟦EMAIL:j+tag@mail.example.co.uk⟧.
<⟦EMAIL:o'brien@example.ie⟧>
Cc: ⟦EMAIL:first_last@sub-domain.example.org⟧; ⟦EMAIL:b@x.io⟧
mailto:⟦EMAIL:team%sales@example.net⟧?subject=hello
Ask ⟦EMAIL:müller@bücher.example⟧ about it.
"email":"⟦EMAIL:user123@example.com⟧"
⟦EMAIL:UPPER.CASE@EXAMPLE.COM⟧ is the same address
Was it ⟦EMAIL:a.b.c@d.e.f.example⟧?
contact(⟦EMAIL:x_y-z@example.travel⟧)
Call ⟦PHONE:+44 20 7946 0958⟧ after six.
Call me at ⟦PHONE:+1 (212) 555-0187⟧.
phone: ⟦PHONE:(212) 555-0187⟧
Or ⟦PHONE:212-555-0187⟧, ask for Jo.
Or ⟦PHONE:212.555.0187⟧!
tel ⟦PHONE:+49 30 901820⟧
Meine Nummer ist ⟦PHONE:030 901820⟧.
⟦PHONE:0171 1234567⟧ ist mobil
Appelez le ⟦PHONE:01 23 45 67 89⟧ ou le ⟦PHONE:+33 1 23 45 67 89⟧
WhatsApp: ⟦PHONE:+919876543210⟧
⟦PHONE:+61 2 9374 4000⟧ (Sydney)
Fax ⟦PHONE:+41-44-668-1800⟧
Ring ⟦PHONE:020 7946 0018⟧ in London.
⟦PHONE:+81 3-6384-9000⟧ Tokyo
⟦PHONE:1-800-555-0199⟧ toll free
My number: ⟦PHONE:+14155550132⟧.
⟦PHONE:089/1234567⟧
Pay with ⟦CARD:4111 1111 1111 1111⟧, thanks.
Card ⟦CARD:5555555555554444⟧ exp 04/27
amex ⟦CARD:3782 822463 10005⟧
card no. ⟦CARD:6011-1111-1111-1117⟧
⟦CARD:3530111333300000⟧ is a JCB
It is ⟦CARD:4012888888881881⟧.
Mastercard ⟦CARD:2223003122003222⟧
Diners ⟦CARD:30569309025904⟧
("⟦CARD:4242424242424242⟧")
Transfer to ⟦IBAN:DE89 3704 0044 0532 0130 00⟧ today.
IBAN ⟦IBAN:GB82WEST12345698765432⟧
⟦IBAN:FR14 2004 1010 0505 0001 3M02 606⟧ est le bon
Konto: ⟦IBAN:CH9300762011623852957⟧
⟦IBAN:NL91ABNA0417164300⟧, Amsterdam
⟦IBAN:ES91 2100 0418 4502 0005 1332⟧
⟦IBAN:NO9386011117947⟧
⟦IBAN:MT84MALT011000012345MTLCAST001S⟧
The client is ⟦IP:203.0.113.77⟧.
from ⟦IP:10.12.14.16⟧:8080 to ⟦IP:198.51.100.4⟧/24
ssh root@⟦IP:192.0.2.14⟧
⟦IP:2001:db8::ff00:42:8329⟧ answered
host [⟦IP:2001:db8:85a3::8a2e:370:7334⟧]:443
link-local ⟦IP:fe80::1ff:fe23:4567:890a⟧
mapped ⟦IP:::ffff:203.0.113.9⟧
2024-05-01 12:00:01 ⟦IP:203.0.113.5⟧ GET /index.html
export OPENAI_API_KEY=⟦SECRET:sk-proj-abcdEFGH1234ijklMNOP5678⟧
use ⟦SECRET:ghp_16C7e42F292c6912E7710c838347Ae178B4a⟧ to clone
aws ⟦SECRET:AKIAIOSFODNN7EXAMPLE⟧
Authorization: Bearer ⟦SECRET:mF_9.B5f-4.1JqM0aaVVaQe7⟧
jwt ⟦SECRET:eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U⟧
token = "⟦SECRET:9f8e7d6c5b4a39281706⟧"
password: ⟦SECRET:hunter2hunter2⟧
slack ⟦SECRET:xoxb-123456789012-abcdefghijklmnop⟧
google ⟦SECRET:AIzaSyA1234567890abcdefghijklmnopqrstuv⟧
hf login --token ⟦SECRET:hf_abcdefghijklmnopqrstuvwxyz012345⟧
{"api_key": "⟦SECRET:a1b2c3d4e5f6a7b8⟧"}
gitlab ⟦SECRET:glpat-abcdEFGH1234ijklMNOP⟧
penstock key ⟦SECRET:ps_0123456789abcdefghijklmn⟧
"""

NEGATIVES = """
It is 10:30:45 on 2024-05-01, the 122nd day.
Version 1.2.3.4 came out after v10.20.30.40.
Install numpy==1.26.4.0 and build 4.3.2.1 of it.
Order 4111 1111 1111 1112 was shipped.
Tracking number 1234567890123456
ISBN 978-3-16-148410-0 is a book.
The sum is 1,234,567,890,123 dollars.
pi is 3.14159265358979323846
2 + 2 = 4, and 123-456 = -333
phone home, said E.T.
Between 1990-2000 and 2010-2020 it grew.
std::vector<int> a; std::map<k, v> b; ns::c::d
a::b is a path in Rust, and face::cafe as well
The ratio is 16:9 and the score 3:2:1.
@decorator and foo@bar and @user are no addresses
a @ b, where a is a matrix
user@localhost has no domain
0123456789abcdef is hexadecimal
sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
uuid 123e4567-e89b-12d3-a456-426614174000
DE00 0000 0000 0000 0000 00 is no account.
GB82WEST12345698765433
ABCD1234EFGH5678 is a serial number.
AB12 3456 7890 1234 5678
The token is a unit of text; a secret: none at all.
password: please choose one
token: string, secret: optional
max_tokens = 4096, api_key = None
Bearer of bad news travels fast
bearer tokens_are_explained_here
sk-learn is scikit-learn, sk_buff is in the kernel
skip-the-line tickets, pk-values, risk-averse
eyJ is how such a token begins.
127.0.0.1 and ::1 are this machine, 0.0.0.0 any.
300.400.500.600 is no address.
1.2.3 and 1.2.3.4.5 are none either.
lat 52.5200, lon 13.4050
Room 12-345, floor 6, bed 789-01
1234-5678 is too short, 12/34/5678 a date
the years 2019 2020 2021 2022 2023
0 1 2 3 4 5 6 7 8 9 10 11 12
call(0, 1000000, 2000000)
$ 0.30 901.82 per unit
1000000000000 is a trillion.
0000 0000 0000 0000
f(x) = 10 + 49 30
-----BEGIN PUBLIC KEY-----
the price+44 percent, x+1 y+2
10.1000/182 is the beginning of a DOI: 10.1000/xyz123
RFC 5322, ISO 13616, IEC 7812-1, HTTP 404
Temperature 36.6 37.2 38.1 39.0
2001:db8 is the beginning of a prefix
ratio 12:34 and 56:78:90
https://example.com/path?page=1234567890
"""
