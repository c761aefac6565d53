"""Terms of a contract as data: the answer is held to the schema token by token.

python examples/05_contract_terms.py MODEL.gguf [CONTRACT]
"""

import sys
from pathlib import Path

from pydantic import BaseModel, Field

from mixtral_rag import ChatChineseMixtral

AGREEMENT = Path(__file__).parent / "contracts" / "service-agreement.md"


class Terms(BaseModel):
    """What a contract says."""

    number: str = Field(description="the number of the agreement", max_length=20)
    customer: str = Field(description="who pays", max_length=60)
    contractor: str = Field(description="who works", max_length=60)
    fee: str = Field(description="fee a year with its currency", max_length=24)
    notice_days: int = Field(description="days of notice to end it", ge=0, le=365)


def main(model: str, contract: str = str(AGREEMENT)) -> None:
    chat = ChatChineseMixtral(model=model, temperature=0.0, max_tokens=200)
    text = Path(contract).read_text("utf-8")
    terms = chat.with_structured_output(Terms).invoke(f"{text}\n\nWrite down the terms as JSON.")
    for name, value in terms:
        print(f"{name:12} {value}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
