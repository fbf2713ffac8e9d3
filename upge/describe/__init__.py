"""What there is to say of parts and recipes: formulas, descriptions, tables, and which estimators are alike."""
